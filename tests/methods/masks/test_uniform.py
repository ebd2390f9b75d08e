"""Sampled weights: probabilities, shares, factors, exact rows, nesting, unbiased outputs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from experiment.errors import InfeasibleBudget
from experiment.layers.build import expand
from experiment.layers.masks import bake_masks, named_masks
from experiment.layers.plan import Plan, State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Budget, Compressor, make_method
from experiment.methods.masks.uniform import NetworkDraws
from experiment.random_streams import generator

LABELS = ("Uniform", "l1", "l2", "(l1+l2)/2")


def compressor(label: str, state: State, seed: int = 0) -> Compressor:
    entry = METHODS[label]
    counted = count(state.network, state.example)
    return Compressor(make_method(entry, entry.settings()), state, counted, None, generator("test_uniform", seed))


def linear(weight: list[list[float]]) -> State:
    network = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor(weight))
    return State(network.eval(), torch.zeros(1, len(weight[0])))


@pytest.fixture(params=["Uniform", "l2"])  # one implementation; `test_probabilities` has all four
def label(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def state(state_of: Callable[[str], State]) -> State:
    """One network, with convolutions and linear layers."""
    return state_of("cnn")


def test_probabilities() -> None:
    state = linear([[1, -2, 0, 1], [3, 0, 0, 0]])
    expected = {
        "Uniform": [[1 / 4] * 4, [1 / 4] * 4],
        "l1": [[1 / 4, 1 / 2, 0, 1 / 4], [1, 0, 0, 0]],
        "l2": [[1 / 6, 4 / 6, 0, 1 / 6], [1, 0, 0, 0]],
        "(l1+l2)/2": [[5 / 24, 7 / 12, 0, 5 / 24], [1, 0, 0, 0]],
    }
    for name, p in expected.items():
        assert compressor(name, state).analysis.layers["weight"].p.tolist() == [pytest.approx(row) for row in p]


def test_masked_weights_are_never_drawn() -> None:
    plain = linear([[1, -2, 0, 1], [3, 1, 1, 1]])
    mask = torch.tensor([[True, False, True, True], [False, False, False, False]])
    for name in LABELS:
        urn = compressor(name, State(plain.network, plain.example, {"weight": mask})).analysis.layers["weight"]
        assert not urn.p[~mask].any()
        assert urn.p.sum(1).tolist() == pytest.approx([1, 0])


def test_rows_have_the_share_of_weights_on_average(label: str) -> None:
    """Mean over 300 filters against E_unique of their draws, which is m or, for whole draws, a little more."""
    weight = torch.randn(300, 40, generator=generator("w"))
    urn = compressor(label, linear(weight.tolist())).analysis.layers["weight"]
    for share, wanted in ((0.1, 4), (0.5, 20), (0.9, 36), (0.001, 1)):
        kept_RC, draws_R = urn.kept(share)
        assert urn.wanted(share).tolist() == [wanted] * 300
        assert draws_R[draws_R.isfinite()].min() >= wanted
        expected = -torch.expm1(draws_R[:, None] * torch.log1p(-urn.p.clamp(max=1))).nan_to_num(nan=0.0).sum(1).mean()
        assert wanted <= expected < wanted + 1
        assert float(kept_RC.sum(1).double().mean()) == pytest.approx(float(expected), abs=5 * 2 / np.sqrt(300))
    assert urn.kept(1.0)[0].all()


def test_a_larger_share_keeps_what_a_smaller_one_did(label: str, state: State) -> None:
    urns = compressor(label, state).analysis
    for urn in urns.layers.values():
        before = torch.zeros_like(urn.alive)
        for share in np.linspace(0, 1, 12):
            kept_RC, _ = urn.kept(share)
            assert not (before & ~kept_RC).any()
            before = kept_RC


def test_factors_are_those_of_the_draws(label: str, state: State) -> None:
    """count = factor N p is a whole number from 1 on, a row's add up to N; exact rows have factor 1."""
    made = compressor(label, state)
    plan = made.compress(0.5).plan
    share = share_of(made.analysis, plan)
    for name, urn in made.analysis.layers.items():
        kept_RC, draws_R = urn.kept(share)
        scale_RC = plan.scales[name].flatten(1).double()
        assert torch.equal(plan.masks[name].flatten(1), kept_RC)
        sampled = draws_R.isfinite()
        assert sampled.any()
        counts_RC = (scale_RC * draws_R[:, None] * urn.p)[sampled].masked_fill(~kept_RC[sampled], 0)
        torch.testing.assert_close(counts_RC, counts_RC.round(), rtol=1e-5, atol=1e-4)
        assert (counts_RC[kept_RC[sampled]] > 0.5).all()
        torch.testing.assert_close(counts_RC.sum(1), draws_R[sampled], rtol=1e-5, atol=1e-3)
        assert (scale_RC[~sampled] == 1).all()


def share_of(urns: NetworkDraws, plan: Plan) -> float:
    """The share that a plan was made with: the one whose weights it keeps."""
    shares = sorted({k / urn.p.shape[1] for urn in urns.layers.values() for k in range(1, urn.p.shape[1] + 1)})
    fitting = [s for s in shares if urns.cost(s, Budget("parameters", 0, 1)) == plan.parameters]
    return fitting[-1]


def test_no_larger_share_fits(label: str, state: State) -> None:
    made = compressor(label, state)
    shares = sorted({k / urn.p.shape[1] for urn in made.analysis.layers.values() for k in range(1, urn.p.shape[1] + 1)})
    for quantity in ("parameters", "flops"):
        limit = int(0.6 * (made.original.parameters if quantity == "parameters" else made.original.flops))
        budget = Budget(quantity, limit, 1)
        plan = made.method.plan(made.analysis, budget)
        costs = [made.analysis.cost(share, budget) for share in shares]
        assert costs == sorted(costs)
        best = max(cost for cost in costs if cost <= limit)
        found = count(made.instantiate(plan), state.example)
        assert (found.parameters if quantity == "parameters" else found.flops_unmasked) == best


def test_written_weights_are_scaled_and_rewound_ones_are_not(label: str, state: State) -> None:
    made = compressor(label, state)
    compressed = made.compress(0.5)
    other = State(nn.ModuleList([state.network])[0], state.example)
    written, rewound = bake_masks(compressed.network), bake_masks(made.instantiate(compressed.plan, other))
    for name, mask in named_masks(compressed.network).items():
        own = state.network.get_parameter(name)
        assert torch.equal(rewound.get_parameter(name), own * mask)
        torch.testing.assert_close(written.get_parameter(name), own * mask * compressed.plan.scales[name])


def test_layers_compute_on_average_what_they_did(label: str) -> None:
    """4 filters, 2000 copies of each; the mean of each output lies within five standard errors."""
    weight, copies = torch.randn(4, 30, generator=generator("w")), 2000
    state, x = linear(weight.repeat(copies, 1).tolist()), torch.randn(5, 30, generator=generator("x"))
    with torch.no_grad():
        outputs = compressor(label, state).compress(0.4).network(x).reshape(5, copies, 4)
    error = outputs.std(1) / np.sqrt(copies)
    assert ((outputs.mean(1) - x @ weight.T).abs() < 5 * error).all()


def test_exact_rows() -> None:
    """A row with fewer possible weights than it wants keeps just those, one that is masked to fewer keeps all."""
    state = linear([[1, 2, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    urn = compressor("l1", state).analysis.layers["weight"]
    kept_RC, draws_R = urn.kept(0.5)
    assert kept_RC[0].tolist() == [True, True, False, False, False, False]
    assert draws_R[0] == torch.inf
    assert draws_R[1] == 4  # 6 (1 - (5/6)^4) = 3.1
    mask = torch.tensor([[True, False, True, False, False, False], [True] * 6])
    urn = compressor("l1", State(state.network, state.example, {"weight": mask})).analysis.layers["weight"]
    kept_RC, draws_R = urn.kept(0.5)
    assert kept_RC[0].tolist() == mask[0].tolist()  # the zero too, which no mask removed
    assert draws_R[0] == torch.inf


def test_a_filter_of_zeros_keeps_nothing(label: str) -> None:
    state = linear([[0, 0, 0, 0], [1, 2, 3, 4], [4, 3, 2, 1]])
    network = compressor(label, state).compress(0.7).network
    assert torch.isfinite(network.weight).all()
    kept = named_masks(network)["weight"].sum(1).tolist()
    assert kept[0] == 0 or label == "Uniform"


def test_one_weight_a_filter_is_the_least(label: str, state: State) -> None:
    made = compressor(label, state)
    filters, weights = 8 + 12 + 20 + 10, 3 * 8 * 9 + 8 * 12 * 9 + 48 * 20 + 200
    with pytest.raises(InfeasibleBudget, match=f"{made.original.parameters - weights + filters:,}"):
        made.compress(0.001)


def test_a_cascade_goes_on_from_the_reweighted_weights(label: str, state: State) -> None:
    first = compressor(label, state).compress(0.6)
    middle = expand(first.network, state.network, first.plan, state.example)
    made = compressor(label, middle)
    for name, urn in made.analysis.layers.items():
        assert torch.equal(urn.alive, first.plan.masks[name].flatten(1))
    second = made.compress(0.7)  # of the network that is left
    for name, mask in named_masks(second.network).items():
        assert not (mask & ~first.plan.masks[name]).any()


def test_half_precision_weights(label: str) -> None:
    network = nn.Linear(20, 6).to(torch.bfloat16).eval()
    state = State(network, torch.zeros(1, 20, dtype=torch.bfloat16))
    compressed = compressor(label, state).compress(0.5)
    assert compressed.network.weight.dtype == torch.bfloat16
    assert compressed.plan.scales["weight"].dtype == torch.float32
