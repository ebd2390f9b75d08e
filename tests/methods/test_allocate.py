"""The allocations, against trying every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiment.methods.allocate import common_threshold, minimise_maximum, smallest

SEEDS = range(20)


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
def test_largest_error_then_the_next_are_the_smallest_possible(seed: int) -> None:
    errors, costs = random_options(seed)
    for limit in range(smallest(costs), sum(int(c.max()) for c in costs) + 5, 3):
        chosen = minimise_maximum(errors, costs, limit)
        assert sum(int(c[i]) for c, i in zip(costs, chosen, strict=True)) <= limit
        best = min(worst_first(errors, choice) for choice in all_choices(costs, limit))
        assert worst_first(errors, chosen) == best


@pytest.mark.parametrize("seed", SEEDS)
def test_largest_error_is_optimal_with_equal_errors_too(seed: int) -> None:
    errors, costs = random_options(seed)
    errors = [np.round(error, 1) for error in errors]
    for limit in range(smallest(costs), sum(int(c.max()) for c in costs) + 5, 3):
        chosen = minimise_maximum(errors, costs, limit)
        assert sum(int(c[i]) for c, i in zip(costs, chosen, strict=True)) <= limit
        best = min(worst_first(errors, choice)[0] for choice in all_choices(costs, limit))
        assert worst_first(errors, chosen)[0] == best


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


def test_no_layers() -> None:
    assert minimise_maximum([], [], 0) == common_threshold([], [], 0) == []
    assert smallest([]) == 0


def test_limit_below_the_smallest_is_a_callers_mistake() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        common_threshold([np.zeros(1)], [np.array([5])], 4)
