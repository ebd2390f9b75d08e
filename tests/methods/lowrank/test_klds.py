"""KLDS: planted ranks, measured divergences, what ALDS does at the same budget, and what it refuses."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, InfeasibleBudget
from experiment.layers.build import expand
from experiment.layers.factored_layers import product, read_factors
from experiment.layers.plan import Factors, State
from experiment.measure import Count, count
from experiment.methods import METHODS
from experiment.methods.base import Budget, Calibration, Compressor, make_method
from experiment.methods.data import output_divergence
from experiment.methods.lowrank import klds
from experiment.methods.lowrank.klds import LEAST, interpolated, spread
from experiment.random_streams import generator, seeded

StateOf = Callable[[str], State]


def images(state: State, number: int = 24, name: str = "") -> Tensor:
    """Correlated inputs around a mean, of which some directions are strong and most are weak."""
    shape = state.example.shape[1:]
    mix = torch.randn(shape.numel(), shape.numel(), generator=generator("test_klds", "mix"))
    mix = mix * torch.logspace(0, -2, shape.numel())[:, None]
    x = torch.randn(number, shape.numel(), generator=generator("test_klds", name)) @ mix
    return x.reshape(number, *shape) + 0.3


def compressor(
    state: State, label: str = "KLDS", inputs: Tensor | None = None, original: Count | None = None, **settings: object
) -> Compressor:
    entry = METHODS[label]
    calibration = Calibration(images(state) if inputs is None else inputs)
    original = original or count(state.network, state.example)
    return Compressor(make_method(entry, entry.settings(**settings)), state, original, calibration, generator("klds"))


@torch.no_grad()
def divergence(dense: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The mean of KL(p || q), in float64."""
    p, q = (network(x).double().log_softmax(-1) for network in (dense, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def planted(zero: bool = False) -> State:
    """The second of three layers is of rank 1, or zero."""
    with seeded("test_klds"):
        network = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 18), nn.ReLU(), nn.Linear(18, 6)).eval()
        with torch.no_grad():
            network[0].bias.add_(0.5)
            network[2].weight.copy_(0 if zero else torch.outer(torch.randn(18), torch.randn(24)))
    return State(network, torch.randn(1, 12, generator=generator("planted")))


@pytest.mark.parametrize("keep", [0.35, 0.6])
def test_each_allocation_makes_its_own_measure_smallest(state_of: StateOf, keep: float) -> None:
    state = state_of("cnn")
    losses = {}
    for allocation in ("sum", "minimax", "uniform"):
        made = compressor(state, allocation=allocation)
        budget = Budget("parameters", int(keep * made.original.parameters), made.original.parameters)
        chosen = made.analysis.base.choose(budget, partial(klds.RULES[allocation], made.analysis.losses))
        losses[allocation] = [float(own[i]) for own, i in zip(made.analysis.losses, chosen or (), strict=True)]
        assert made.plan(keep).loss == pytest.approx((max if allocation == "minimax" else sum)(losses[allocation]))
    assert max(losses["minimax"]) == min(map(max, losses.values()))
    assert sum(losses["sum"]) <= 1.02 * min(map(sum, losses.values()))


@pytest.mark.parametrize("refit", [True, False])
def test_layer_of_rank_one_goes_to_rank_one_first(refit: bool) -> None:
    state = planted()
    made = compressor(state, refit=refit)
    limit = made.original.parameters - 24 * 18 + 24 + 18
    for missing in (0, 1, 60):
        plan = made.method.plan(made.analysis, Budget("parameters", limit - missing, made.original.parameters))
        assert plan.factors["2"] == Factors(1, 1, 0, bias=True)
        assert plan.details["2"]["relative_error_exact"] < 1e-3
        assert plan.details["2"]["relative_error"] < 1e-2
        assert (len(plan.factors) == 1) == (missing == 0)
        assert plan.parameters <= limit - missing
        if not missing:
            assert divergence(state.network, made.instantiate(plan), images(state)) < 1e-6


def test_dead_layer_is_the_first_to_go() -> None:
    made = compressor(planted(zero=True))
    limit = made.original.parameters - 24 * 18 + 24 + 18
    plan = made.method.plan(made.analysis, Budget("parameters", limit, made.original.parameters))
    assert plan.factors == {"2": Factors(1, 1, 0, bias=True)}
    built = made.instantiate(plan)
    assert not product(built[2]).any()
    assert torch.equal(built(images(made.state)), made.state.network(images(made.state)))


@pytest.mark.parametrize("name", ["cnn", "residual", "sequences"])
def test_losses_are_what_was_measured_where_it_was(state_of: StateOf, name: str) -> None:
    state = state_of(name)
    made = compressor(state, points=4, images=20, foldings=(0, 1), min_group_width=2)
    analysis, x = made.analysis, images(state)[:20]
    for (layer, options), losses, errors in zip(
        analysis.base.options.items(), analysis.losses, analysis.errors, strict=True
    ):
        directions, alone = analysis.directions[layer], copy.deepcopy(state.network)
        tried = spread(errors**2 * directions.total, options.costs["parameters"], 4)
        assert 1 <= len(tried) <= 4
        for i in tried:
            factors = Factors(int(options.ranks[i]), int(options.groups[i]), int(options.foldings[i]))
            with torch.no_grad():
                alone.get_submodule(layer).weight.copy_(directions.product(factors))
            assert losses[i] == pytest.approx(max(divergence(state.network, alone, x), LEAST), rel=1e-3, abs=1e-7)
        assert losses[-1] == 0
        assert (losses[:-1] > 0).all()


def test_between_measurements_logarithms_are_straight() -> None:
    prediction = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    losses = interpolated(prediction, prediction[[1, 3]], np.array([40.0, 1.0]))
    np.testing.assert_allclose(losses[[1, 3]], [40.0, 1.0])
    np.testing.assert_allclose(losses[2], 40**0.5)
    np.testing.assert_allclose(losses[[0, 4]], [80.0, 0.5])  # beyond, the last ratio stays
    assert losses[5] == 0


def test_scale_of_predictions_does_not_matter() -> None:
    prediction = np.array([8.0, 4.0, 2.0, 1.0, 0.0, 0.0])
    expected = interpolated(prediction, prediction[[0, 2, 4]], np.array([3.0, 1.0, 0.0]))
    for scale in (1e-30, 1e30):
        found = interpolated(prediction * scale, scale * prediction[[0, 2, 4]], np.array([3.0, 1.0, 0.0]))
        np.testing.assert_allclose(found, expected)
    assert expected[4] == pytest.approx(LEAST)
    np.testing.assert_allclose(interpolated(0 * prediction, np.zeros(1), np.zeros(1))[:5], LEAST)


def test_tried_options_lie_on_the_front_from_end_to_end() -> None:
    prediction, cost = np.array([9.0, 7.0, 8.0, 3.0, 2.0, 0.0]), np.array([1, 2, 3, 10, 100, 200])
    assert spread(prediction, cost, 2) == [0, 4]
    assert spread(prediction, cost, 8) == [0, 1, 3, 4]
    assert spread(prediction[-1:], cost[-1:], 8) == []


@pytest.mark.parametrize("name", ["cnn", "residual"])
def test_outputs_move_less_than_with_alds(state_of: StateOf, name: str) -> None:
    state = state_of(name)
    x, others = images(state, 100), images(state, 200, "held out")
    methods = {
        "ALDS": compressor(state, "ALDS", x),
        "KLDS": compressor(state, inputs=x, points=4, images=32),
        "not refitted": compressor(state, inputs=x, points=4, images=32, refit=False),
    }
    for keep in (0.8, 0.5):
        moved = {n: divergence(state.network, m.compress(keep).network, others) for n, m in methods.items()}
        assert moved["KLDS"] < 0.8 * moved["ALDS"]
        assert moved["not refitted"] < moved["ALDS"]


def span(A: Tensor) -> Tensor:
    """The projection onto the columns of every matrix."""
    Q = torch.linalg.qr(A)[0]
    return Q @ Q.mT


def test_refitting_changes_decoders_only(state_of: StateOf) -> None:
    state = state_of("cnn")
    one, other = (compressor(state, refit=refit, points=2).compress(0.5) for refit in (True, False))
    assert one.plan.to_data() == other.plan.to_data()
    factors_of = {f"{name}.{side}.weight" for name in one.plan.factors for side in ("encoder", "decoder")}
    tensors = other.network.state_dict()
    for name, tensor in one.network.state_dict().items():
        assert name in factors_of or torch.equal(tensor, tensors[name])
    moved = []
    for name in one.plan.factors:  # balanced afterwards: what encoders span is what they spanned before
        fitted, plain = (read_factors(made.network.get_submodule(name)) for made in (one, other))
        torch.testing.assert_close(span(fitted[1].mT), span(plain[1].mT), rtol=1e-3, atol=1e-4)
        moved.append(float((fitted[0] @ fitted[1] - plain[0] @ plain[1]).norm() / (plain[0] @ plain[1]).norm()))
    assert max(moved) > 1e-2
    directions = compressor(state, points=2).analysis.directions
    for name, factors in other.plan.factors.items():
        built = product(other.network.get_submodule(name))
        torch.testing.assert_close(built, directions[name].product(factors), rtol=1e-4, atol=1e-5)


def test_measuring_in_parts_gives_the_same_losses(state_of: StateOf, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compressor(state_of("residual"), points=3, images=24).analysis.losses
    monkeypatch.setattr(output_divergence, "SAMPLES", 5)
    for a, b in zip(whole, compressor(state_of("residual"), points=3, images=1000).analysis.losses, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6)


def test_inputs_of_another_type_are_taken(state_of: StateOf) -> None:
    state = state_of("cnn")
    one, other = (compressor(state, inputs=x).compress(0.5) for x in (images(state), images(state).double()))
    tensors = other.network.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in one.network.state_dict().items())


def test_other_weights_keep_the_decoders(state_of: StateOf) -> None:
    made = compressor(state_of("residual"), foldings=(0, 1, 2, 3))
    compressed, other = made.compress(0.6), copy.deepcopy(made.state.network)
    with seeded("test_klds", "rewind"), torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.1, 1.0)
    rewound = made.instantiate(compressed.plan, State(other, made.state.example))
    assert compressed.plan.factors
    for name, factors in compressed.plan.factors.items():  # balanced afterwards: the decoders' span stays
        before, after = (
            read_factors(network.get_submodule(name), factors.folding) for network in (compressed.network, rewound)
        )
        torch.testing.assert_close(span(after[0]), span(before[0]), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(before[0] @ before[1], after[0] @ after[1], rtol=1e-3, atol=1e-4)
    tensors, whole = rewound.state_dict(), other.state_dict()
    shared = {name for name in tensors if ".encoder." not in name and ".decoder." not in name}
    assert all(torch.equal(tensors[name], whole[name]) for name in shared)


@pytest.mark.parametrize("first", ["WT", "FT", "PCA", "Messi3"])
def test_goes_on_from_what_other_methods_left(state_of: StateOf, first: str) -> None:
    state = state_of("residual")
    begun = compressor(state, first)
    half = begun.compress(0.7)
    middle = expand(half.network, state.network, half.plan, state.example)
    if first == "WT":  # what stands behind a mask is zero, whatever the network says
        for name, mask in middle.masks.items():
            middle.network.get_parameter(name).data[~mask] = 9.0
    made = compressor(middle, original=begun.original)
    compressed = made.compress(0.5)
    assert compressed.plan.factors
    assert compressed.count.parameters <= 0.5 * begun.original.parameters
    x = images(state, 100, "held out")
    nothing = divergence(half.network, lambda _: torch.zeros(100, 10), x)
    assert divergence(half.network, compressed.network, x) < 0.5 * nothing


class Odd(nn.Module):
    """Layers used twice, on grids and sequences, given by name; one too small; one never used; inputs left in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")
        self.fc, self.last, self.never, self.small = (
            nn.Linear(4, 16),
            nn.Linear(16, 9),
            nn.Linear(6, 6),
            nn.Linear(1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu_(self.conv(x))[:, :, ::2])
        y = self.fc(x.mean((2, 3))).relu_() + self.fc(input=x.flatten(2).mT).relu_().sum(1)
        return self.last(input=y) * self.small(x.new_ones(1, 1))


def test_odd_networks_are_taken() -> None:
    with seeded("test_klds", "odd"):
        network = Odd().requires_grad_(False).eval()
    state = State(network, torch.randn(1, 4, 6, 6, generator=generator("odd")))
    before = copy.deepcopy(network.state_dict())
    compressed = compressor(state, foldings=(0, 3), inputs=images(state, 5)).compress(0.7)
    assert {"conv", "last"} & compressed.plan.factors.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.isfinite(compressed.network(images(state))).all()


def test_a_network_that_is_one_layer_and_one_that_has_none() -> None:
    with seeded("test_klds", "bare"):
        one, none = nn.Linear(12, 9).eval(), nn.Sequential(nn.BatchNorm2d(4), nn.Flatten()).eval()
    state = State(one, torch.randn(1, 12, generator=generator("bare")))
    assert compressor(state).compress(0.6).plan.factors.keys() == {""}
    made = compressor(State(none, torch.randn(1, 4, 5, 5, generator=generator("bare"))))
    assert made.compress(1.0).plan.factors == {}
    with pytest.raises(InfeasibleBudget):
        made.compress(0.9)


def test_what_it_needs_and_does_not_get_is_told(state_of: StateOf) -> None:
    state, entry = state_of("cnn"), METHODS["KLDS"]
    method, original = make_method(entry, entry.settings()), count(state.network, state.example)
    for calibration in (None, Calibration(torch.zeros(0, 3, 8, 8))):
        with pytest.raises(CompressionError, match="KLDS needs calibration data.*data=inputs"):
            Compressor(method, state, original, calibration, generator("test_klds"))
    with pytest.raises(CompressionError, match="on the calibration data are NaN or infinite. Are the data finite"):
        compressor(state, inputs=torch.full((2, 3, 8, 8), torch.nan))
    single = State(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1)).eval(), torch.zeros(1, 12))
    with pytest.raises(CompressionError, match=r"at least two classes. Got shape \(16, 1\): choose a method .* ALDS"):
        compressor(single)


def test_a_regression_is_refused() -> None:
    network, x = torch.nn.Linear(6, 5), torch.randn(4, 6)
    made = make_method(METHODS["KLDS"], METHODS["KLDS"].settings())
    state = State(network, x[:1])
    with pytest.raises(CompressionError, match="targets are real numbers, as in a regression"):
        Compressor(made, state, count(network, x[:1]), Calibration(x, torch.randn(4)), generator("klds"))


def test_outputs_that_are_not_finite_once_decomposed_are_told(
    state_of: StateOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(klds.LayerDirections, "product", lambda self, factors: torch.full_like(self._weight, torch.nan))
    with pytest.raises(CompressionError, match="layer '0': when it is compressed.*use a method"):
        compressor(state_of("cnn"))
