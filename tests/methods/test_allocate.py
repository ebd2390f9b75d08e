"""The allocations, against trying every combination."""

import itertools

import numpy as np
import pytest

from experiment.errors import InfeasibleBudget
from experiment.methods.allocate import common_threshold, minimise_maximum, minimise_sum, smallest

SEEDS = range(8)


def random_options(seed: int, num_layers: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Up to seven options a layer: dominated ones, equal costs, and one without error."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, num_layers)
    errors = [np.append(rng.random(size), 0.0) for size in sizes]
    costs = [np.append(rng.integers(1, 30, size), 40) for size in sizes]
    return errors, costs


def all_choices(costs: list[np.ndarray], limit: int) -> list[tuple[int, ...]]:
    choices = itertools.product(*(range(len(cost)) for cost in costs))
    return [choice for choice in choices if sum(c[i] for c, i in zip(costs, choice, strict=True)) <= limit]


def worst_first(errors: list[np.ndarray], choice: tuple[int, ...] | list[int]) -> list[float]:
    return sorted((float(e[i]) for e, i in zip(errors, choice, strict=True)), reverse=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_largest_errors_are_the_smallest_possible(seed: int) -> None:
    """The largest one, and if all errors differ, the next ones too."""
    errors, costs = random_options(seed)
    rounded = [np.round(error, 1) for error in errors]
    for limit in range(smallest(costs), sum(int(c.max()) for c in costs) + 5, 3):
        choices = all_choices(costs, limit)
        for values, compared in ((errors, len(errors)), (rounded, 1)):
            chosen = minimise_maximum(values, costs, limit)
            assert sum(int(c[i]) for c, i in zip(costs, chosen, strict=True)) <= limit
            best = min(worst_first(values, choice)[:compared] for choice in choices)
            assert worst_first(values, chosen)[:compared] == best


def test_less_budget_never_gives_a_smaller_largest_error() -> None:
    errors, costs = random_options(3)
    limits = range(smallest(costs), sum(int(c.max()) for c in costs) + 1)
    worst = [worst_first(errors, minimise_maximum(errors, costs, limit))[0] for limit in limits]
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] == 0


def test_of_equal_errors_the_cheapest_option_is_taken() -> None:
    errors, costs = [np.array([0.5, 0.5, 0.0])], [np.array([9, 4, 20])]
    assert minimise_maximum(errors, costs, 19) == [1]


def test_what_is_left_goes_to_the_next_worst_layer() -> None:
    errors = [np.array([0.9, 0.0]), np.array([0.5, 0.4, 0.3]), np.array([0.6, 0.1])]
    costs = [np.array([1, 100]), np.array([1, 2, 3]), np.array([1, 6])]
    assert minimise_maximum(errors, costs, 3) == [0, 0, 0]
    assert minimise_maximum(errors, costs, 7) == [0, 2, 0]  # the second worst costs 5 more, the third 1
    assert minimise_maximum(errors, costs, 8) == [0, 0, 1]


def falling(seed: int, num_layers: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 8, num_layers)
    curves = [np.append(np.sort(rng.random(size))[::-1], 0.0) for size in sizes]
    costs = [np.cumsum(rng.integers(1, 9, size + 1)) for size in sizes]
    return curves, costs


@pytest.mark.parametrize("seed", SEEDS)
def test_threshold_is_the_lowest_that_fits(seed: int) -> None:
    curves, costs = falling(seed)
    thresholds = np.unique(np.concatenate(curves))[::-1]

    def at(threshold: float) -> list[int]:
        return [int(np.argmax(curve <= threshold)) for curve in curves]

    def cost(chosen: list[int]) -> int:
        return sum(int(c[i]) for c, i in zip(costs, chosen, strict=True))

    for limit in range(smallest(costs), sum(int(c.max()) for c in costs) + 3):
        fitting = [t for t in [np.inf, *thresholds] if cost(at(t)) <= limit]
        assert common_threshold(curves, costs, limit) == at(min(fitting))


def test_equal_thresholds_go_one_layer_at_a_time() -> None:
    curves = [np.array([0.5, 0.0])] * 3
    costs = [np.array([1, 3])] * 3
    assert [common_threshold(curves, costs, limit) for limit in (4, 5, 7, 9)] == [
        [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1],
    ]  # fmt: skip


def total(values: list[np.ndarray], choice: tuple[int, ...] | list[int]) -> float:
    return sum(float(v[i]) for v, i in zip(values, choice, strict=True))


def by_multiplier(losses: list[np.ndarray], costs: list[np.ndarray], price: float) -> list[int]:
    """Every layer for itself, when cost has a price; of equally good options the dearest."""
    return [int(np.lexsort((-cost, loss + price * cost))[0]) for loss, cost in zip(losses, costs, strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_sum_is_the_smallest_possible_at_budgets_of_one_multiplier(seed: int) -> None:
    losses, costs = random_options(seed)
    for price in [0.0, *np.logspace(-3, 1, 12)]:
        at = by_multiplier(losses, costs, price)
        limit = int(total(costs, at))
        chosen = minimise_sum(losses, costs, limit)
        assert total(costs, chosen) <= limit
        best = min(total(losses, choice) for choice in all_choices(costs, limit))
        assert total(losses, chosen) == pytest.approx(best, abs=1e-12)
        assert total(losses, chosen) == pytest.approx(total(losses, at), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_sum_is_never_above_the_limit_nor_worse_than_that_of_any_multiplier(seed: int) -> None:
    losses, costs = random_options(seed)
    choices = [by_multiplier(losses, costs, price) for price in np.logspace(-4, 2, 200)]
    for limit in range(smallest(costs), sum(int(c.max()) for c in costs) + 5):
        chosen = minimise_sum(losses, costs, limit)
        assert total(costs, chosen) <= limit
        fitting = [total(losses, choice) for choice in choices if total(costs, choice) <= limit]
        assert total(losses, chosen) <= min(fitting, default=np.inf) + 1e-12
        for layer in range(len(costs)):  # nothing that is left over would buy anything
            for option in range(len(costs[layer])):
                other = [option if i == layer else c for i, c in enumerate(chosen)]
                assert total(costs, other) > limit or total(losses, other) >= total(losses, chosen) - 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_sum_of_a_single_layer_is_its_best_option(seed: int) -> None:
    losses, costs = random_options(seed, num_layers=1)
    for limit in range(smallest(costs), 45):
        (chosen,) = minimise_sum(losses, costs, limit)
        fitting = [loss for loss, cost in zip(losses[0], costs[0], strict=True) if cost <= limit]
        assert losses[0][chosen] == min(fitting)
        assert costs[0][chosen] == min(c for e, c in zip(losses[0], costs[0], strict=True) if e == min(fitting))


def test_steps_that_save_alike_go_in_the_order_of_layers() -> None:
    losses, costs = [np.array([3.0, 2.0, 1.0])] * 3, [np.array([1, 2, 3])] * 3
    assert [minimise_sum(losses, costs, limit) for limit in (3, 4, 5, 7, 9, 99)] == [
        [0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 2, 0], [2, 2, 2], [2, 2, 2],
    ]  # fmt: skip


def test_rounding_of_nearly_straight_losses_never_oversteps_the_limit() -> None:
    rng = np.random.default_rng(0)
    costs = [np.cumsum(rng.integers(1, 50, 30)) for _ in range(6)]
    losses = [(cost[-1] - cost) * 0.1 / 3 for cost in costs]  # a straight line but for the last digit
    for limit in range(smallest(costs), sum(int(c.max()) for c in costs), 37):
        assert total(costs, minimise_sum(losses, costs, limit)) <= limit


def test_what_is_left_goes_to_options_off_the_hull() -> None:
    losses, costs = [np.array([10.0, 6.0, 0.0]), np.array([1.0, 0.9])], [np.array([1, 5, 10]), np.array([1, 3])]
    assert minimise_sum(losses, costs, 11) == [2, 0]
    assert minimise_sum(losses, costs, 7) == [1, 0]  # 6 lies above the line from 10 to 0
    assert minimise_sum(losses, costs, 8) == [1, 1]


def test_no_layers() -> None:
    assert minimise_maximum([], [], 0) == common_threshold([], [], 0) == minimise_sum([], [], 0) == []
    assert smallest([]) == 0


def test_limit_below_the_smallest_is_a_callers_mistake() -> None:
    for allocate in (common_threshold, minimise_maximum, minimise_sum):
        with pytest.raises(ValueError, match="at least 5"):
            allocate([np.zeros(1)], [np.array([5])], 4)


def random_several(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Five options a layer with falling errors, and two costs that are traded."""
    rng = np.random.default_rng(seed)
    errors = [np.sort(rng.random(5))[::-1] for _ in range(4)]
    return errors, [np.sort(rng.integers(0, 50, (2, 5)), axis=1) for _ in range(4)]


@pytest.mark.parametrize("seed", SEEDS)
def test_under_several_limits_sum_maximum_and_threshold_are_the_best_of_all_choices(seed: int) -> None:
    errors, costs = random_several(seed)
    limits = np.random.default_rng(100 + seed).integers(20, 160, 2).tolist()
    choices = [c for c in itertools.product(range(5), repeat=4) if (totals(costs, c) <= limits).all()]
    if not choices:
        for rule in (minimise_sum, minimise_maximum):
            with pytest.raises(InfeasibleBudget):
                rule(errors, costs, limits)
        return
    least = minimise_sum(errors, costs, limits)
    assert (totals(costs, least) <= limits).all()
    best = min(sum(worst_first(errors, choice)) for choice in choices)
    assert sum(worst_first(errors, least)) <= best * 1.001
    worst = minimise_maximum(errors, costs, limits)
    assert (totals(costs, worst) <= limits).all()
    assert worst_first(errors, worst)[0] == min(worst_first(errors, choice)[0] for choice in choices)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_common_threshold_under_several_limits_is_that_of_the_tightest(seed: int) -> None:
    errors, costs = random_several(seed)
    limits = [max(100, int(sum(own[c, 0] for own in costs))) for c in range(2)]
    several = common_threshold(errors, costs, limits)
    alone = [common_threshold(errors, [own[c] for own in costs], limits[c]) for c in range(2)]
    assert several == min(alone, key=sum)


def totals(costs: list[np.ndarray], choice: tuple[int, ...] | list[int]) -> np.ndarray:
    return np.sum([own[:, i] for own, i in zip(costs, choice, strict=True)], axis=0)
