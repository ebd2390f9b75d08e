"""Any score of channels under any rule; the greedy one against all combinations of counts."""

from itertools import product

import pytest
import torch
from torch import nn

from experiment.errors import CompressionError, ConfigError
from experiment.layers.build import build, write_whole
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator

SCORES = ("FT", "SoftNet", "Uniform Filters", "Global Filters")
RULES = ("uniform", "global", "isomorphic", "greedy")


@pytest.fixture
def state() -> State:
    """Three layers of few units, so that all numbers of channels are measured."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(
            nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)
        )
        with torch.no_grad():
            net[2].weight.mul_(3)
        return State(net.eval(), torch.randn(1, 6))


def data() -> Calibration:
    return Calibration(torch.randn(40, 6, generator=generator("allocation")))


def compressor(state: State, label: str, calibration: Calibration | None = None, **settings: object) -> Compressor:
    spec = configure(label, settings)
    method = make_method(spec.entry, spec.settings)
    return Compressor(method, state, count(state.network, state.example), calibration, generator(3))


@pytest.mark.parametrize("label", SCORES)
@pytest.mark.parametrize("rule", RULES)
def test_every_score_under_every_rule_meets_budgets(label: str, rule: str, state: State) -> None:
    made = compressor(state, label, data(), allocation=rule)
    sizes = [made.compress(keep).count.parameters / made.original.parameters for keep in (0.8, 0.5, 0.3)]
    assert all(size <= keep for size, keep in zip(sizes, (0.8, 0.5, 0.3), strict=True))
    assert sizes[0] > 0.6
    orders = compressor(state, label, allocation="uniform").analysis.order
    assert made.analysis.order == orders, "rules do not change which channels of a group are best"


def test_greedy_makes_the_largest_harm_of_a_layer_smallest(state: State) -> None:
    """Against all combinations of counts, with the divergence of torch."""
    calibration = data()
    made = compressor(state, "FT", calibration, allocation="greedy")
    filters, orders = made.analysis.filters, made.analysis.order
    free = [i for i, may in enumerate(filters.free) if may]
    whole = nn.functional.log_softmax(state.network(calibration.inputs), 1)

    def harm(group: int, number: int) -> float:
        plan = filters.plan([sorted(o[:number]) if i == group else tuple(sorted(o)) for i, o in enumerate(orders)])
        built = build(state.network, plan)
        write_whole(built, state.network, plan)
        found = nn.functional.log_softmax(built.eval()(calibration.inputs), 1)
        return float(nn.functional.kl_div(found, whole, reduction="batchmean", log_target=True))

    with torch.no_grad():
        harms = {i: [harm(i, n) for n in range(1, len(orders[i]) + 1)] for i in free}
    harms = {i: [max(own[n:]) for n in range(len(own))] for i, own in harms.items()}
    for keep in (0.8, 0.6, 0.4):
        limit = int(keep * made.original.parameters)
        best = float("inf")
        for counts in product(*(range(1, len(orders[i]) + 1) for i in free)):
            numbers = dict(zip(free, counts, strict=True))
            chosen = [order[: numbers.get(i, len(order))] for i, order in enumerate(orders)]
            if filters.size(chosen, "parameters") <= limit:
                best = min(best, max(harms[i][n - 1] for i, n in numbers.items()))
        kept = made.compress(keep).plan.kept
        numbers = {
            i: len(kept[filters.groups[i].name].out or orders[i]) for i in free if filters.groups[i].name in kept
        }
        assert max(harms[i][n - 1] for i, n in numbers.items()) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("label", SCORES)
@pytest.mark.parametrize("rule", RULES)
def test_reversed_the_smallest_scores_stay(label: str, rule: str, state: State) -> None:
    free = [i for i, may in enumerate(compressor(state, label).analysis.filters.free) if may]
    plain, turned = (compressor(state, label, data(), allocation=rule, reverse=r).analysis.order for r in (False, True))
    assert [turned[i] for i in free] == [plain[i][::-1] for i in free]


def test_greedy_needs_data_and_class_scores(state: State) -> None:
    with pytest.raises(CompressionError, match="FT with allocation greedy needs calibration data"):
        compressor(state, "FT", allocation="greedy")
    with pytest.raises(CompressionError, match="FT with allocation greedy compares the softmax of class scores"):
        compressor(state, "FT", Calibration(data().inputs, torch.randn(40)), allocation="greedy")


def test_a_protected_share_has_no_effect_under_the_same_share() -> None:
    with pytest.raises(ConfigError, match="protected: has no effect with allocation uniform"):
        configure("FT", {"protected": 0.2})
    configure("FT", {"protected": 0.2, "allocation": "global"})
