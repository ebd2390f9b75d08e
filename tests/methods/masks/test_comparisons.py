"""Allocations, patterns and reversed rankings, against their definitions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, InfeasibleBudget
from experiment.layers.masks import named_masks
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.masks import activations
from experiment.methods.masks.comparisons import in_filters, lamp
from experiment.methods.masks.selection import elementwise
from experiment.methods.starting_state import start_of
from experiment.random_streams import generator


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 8),
        ).eval()  # fmt: skip


@pytest.fixture
def state() -> State:
    return State(network(), torch.randn(1, 4, 6, 6, generator=generator("comparisons")))


def compressor(label: str, state: State, **settings: object) -> Compressor:
    spec = configure(label, settings)
    inputs = torch.randn(32, *state.example.shape[1:], generator=generator("comparisons", 1))
    calibration = Calibration(inputs, torch.zeros(32, dtype=torch.int64))
    original = count(state.network, state.example)
    return Compressor(make_method(spec.entry, spec.settings), state, original, calibration, generator(2))


def kept(label: str, state: State, keep: float = 0.5, **settings: object) -> dict[str, Tensor]:
    found = named_masks(compressor(label, state, **settings).compress(keep).network)
    whole = {f"{i}.weight": torch.ones_like(state.network[i].weight, dtype=torch.bool) for i in (0, 2, 6)}
    return {name: found.get(name, mask) for name, mask in whole.items()}


def test_lamp_is_its_definition_one_score_at_a_time() -> None:
    scores = torch.randn(50, generator=generator("lamp"))
    alive = torch.rand(50, generator=generator("lamp", 1)) < 0.8
    found = torch.cat(list(lamp(elementwise(scores.abs(), alive=alive), "a").chunks()))
    for i in alive.nonzero().flatten().tolist():
        rest = scores[alive & (scores.abs() >= scores[i].abs())].square().sum()
        assert float(found[i]) == pytest.approx(float(scores[i].square() / rest), rel=1e-5)


def test_lamp_is_global_pruning_by_these_scores(state: State) -> None:
    masks, own = kept("LAMP", state, 0.3), dict[str, Tensor]()
    for name in masks:
        sizes = state.network.get_parameter(name).detach().abs().flatten().double()
        own[name] = torch.stack([w.square() / sizes[sizes >= w].square().sum() for w in sizes])
    every = torch.cat(list(own.values()))
    number = sum(int(mask.sum()) for mask in masks.values())
    least = every.sort(descending=True).values[number - 1]
    for name, mask in masks.items():
        assert torch.equal(mask.flatten(), own[name] >= least)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_erk_keeps_shares_in_proportion_to_sums_of_sides_over_their_product(keep: float, state: State) -> None:
    masks = kept("ERK", state, keep)
    shape = {name: state.network.get_parameter(name).shape for name in masks}
    ratio = {name: sum(own) / math.prod(own) for name, own in shape.items()}
    share = {name: float(mask.float().mean()) for name, mask in masks.items()}
    scale = min(share[name] / ratio[name] for name in masks if share[name] < 1)
    for name in masks:
        assert share[name] == pytest.approx(min(1.0, scale * ratio[name]), abs=1.5 / shape[name].numel())


def test_every_filter_keeps_the_share_of_its_layer(state: State) -> None:
    for label in ("Wanda", "WT"):
        masks = kept(label, state, 0.4, allocation="uniform", within_filters=True)
        for mask in masks.values():
            rows = mask.flatten(1).sum(1)
            assert int(rows.max() - rows.min()) <= 1


def test_filters_keep_their_own_largest(state: State) -> None:
    start, scores = start_of(state, masked=True), state.network[2].weight.detach().abs()
    found = torch.cat(list(in_filters(start, "2.weight", elementwise(scores)).chunks())).reshape(scores.shape)
    for row, score in zip(found.flatten(1), scores.flatten(1), strict=True):
        assert torch.equal(row.argsort(), score.argsort())


@pytest.mark.parametrize("pattern", [(2, 4), (1, 2), (4, 8)])
def test_patterns_keep_the_largest_of_consecutive_inputs(pattern: tuple[int, int], state: State) -> None:
    made, (n, m) = compressor("WT", state, pattern=pattern), pattern
    masks = named_masks(made.compress(1.0).network)
    layers = {"0.weight": 4, "2.weight": 16, "6.weight": 12}
    assert masks.keys() == {name for name, inputs in layers.items() if inputs % m == 0}
    for name, mask in masks.items():
        weight = state.network.get_parameter(name).detach().abs().movedim(1, -1).reshape(-1, m)
        groups = mask.movedim(1, -1).reshape(-1, m)
        assert (groups.sum(1) == n).all()
        least = torch.where(groups, weight, torch.inf).amin(1)
        assert (torch.where(groups, 0, weight).amax(1) <= least).all()
    with pytest.raises(InfeasibleBudget):
        made.compress(0.2)


@pytest.mark.parametrize("label", ["WT", "Wanda", "SparseGPT", "Taylor", "LAMP"])
def test_reversed_rankings_keep_what_goes_otherwise(label: str, state: State) -> None:
    first, last = (kept(label, state, 0.5, reverse=reverse, refit=False) for reverse in (False, True))
    both = sum(int((a & b).sum()) for a, b in zip(first.values(), last.values(), strict=True))
    assert both <= 0.02 * sum(mask.numel() for mask in first.values())


@pytest.mark.parametrize("label", ["WT", "Random", "SparseGPT"])
def test_refit_comes_closer_to_the_outputs_and_leaves_the_size(label: str, state: State) -> None:
    x = torch.randn(64, 4, 6, 6, generator=generator("comparisons", 3))
    errors = []
    for refit in (False, True):
        result = compressor(label, state, refit=refit).compress(0.4)
        errors.append(float((result.network(x) - state.network(x)).square().mean().detach()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"pattern": (4, 4)}, "pattern"),
        ({"pattern": (2, 4), "allocation": "erk"}, "pattern"),
        ({"pattern": (2,)}, "pattern"),
        ({"allocation": "lamp", "within_filters": True}, "within_filters"),
        ({"allocation": "best"}, "allocation"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, object], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        configure("WT", settings)


def test_synflow_loses_no_layer_and_smaller_networks_are_part_of_larger_ones(state: State) -> None:
    made = compressor("SynFlow", state)
    large, small = (named_masks(made.compress(keep).network) for keep in (0.5, 0.05))
    for name in ("0.weight", "2.weight", "6.weight"):
        assert small[name].any()
        assert not (small[name] & ~large[name]).any()


def test_synflow_starts_from_the_product_of_sizes(state: State) -> None:
    """Of a network of two linear layers w dR/dw is |w2 w1 x| in closed form."""
    linear = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)).eval()
    own = State(linear, torch.randn(1, 5))
    a, b = (layer.weight.detach().abs() for layer in linear)
    flow = torch.cat([(a * b.sum(0)[:, None]).flatten(), (b * a.sum(1)).flatten()])
    masks = named_masks(compressor("SynFlow", own).compress(31 / 32).network)  # 1 of 32 goes in the first round
    gone = torch.cat([masks[f"{i}.weight"].flatten() if f"{i}.weight" in masks else torch.ones(n, dtype=torch.bool)
                      for i, n in ((0, 20), (1, 12))])  # fmt: skip
    assert (~gone).nonzero().flatten().tolist() == [int(flow.argmin())]


def test_wanda_and_obs_are_their_formulas(state: State) -> None:
    linear = State(nn.Sequential(nn.Linear(6, 5, bias=False)).eval(), torch.randn(1, 6))
    made = {
        label: compressor(label, linear, allocation="global", within_filters=False) for label in ("Wanda", "SparseGPT")
    }
    X = torch.randn(32, 6, generator=generator("comparisons", 1)).double()
    H, W = X.T @ X / 32, linear.network[0].weight.detach().double()
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(6)
    expected = {"Wanda": W.abs() * H.diagonal().sqrt(), "SparseGPT": W.square() / torch.linalg.inv(damped).diagonal()}
    for label, scores in expected.items():
        found = torch.cat(list(made[label].analysis.parts["0.weight"].chunks())).reshape(5, 6)
        torch.testing.assert_close(found.double(), scores, rtol=1e-4, atol=1e-8)


def test_taylor_and_grasp_are_their_formulas(state_of: Callable[[str], State]) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    state = State(net, torch.randn(1, 4, dtype=torch.float64))
    x = torch.randn(32, 4, generator=generator("comparisons", 1)).double()
    y = torch.zeros(32, dtype=torch.int64)
    weights = [net[0].weight, net[2].weight]
    taylor = [torch.zeros_like(w) for w in weights]
    for i in range(32):
        grads = torch.autograd.grad(nn.functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), weights)
        taylor = [t + (w * g).square() / 32 for t, w, g in zip(taylor, weights, grads, strict=True)]
    loss = nn.functional.cross_entropy(net(x).log_softmax(1) / 200, y)
    first = torch.autograd.grad(loss, weights, create_graph=True)
    product = sum((g * g.detach()).sum() for g in first)
    grasp = [w * h for w, h in zip(weights, torch.autograd.grad(product, weights), strict=True)]
    for label, expected in (("Taylor", taylor), ("GraSP", grasp)):
        parts = compressor(label, state).analysis.parts
        for name, score in zip(("0.weight", "2.weight"), expected, strict=True):
            found = torch.cat(list(parts[name].chunks())).reshape(score.shape)
            torch.testing.assert_close(found, score.detach(), rtol=1e-6, atol=1e-14)


def test_lamp_refuses_scores_of_both_signs(state: State) -> None:
    with pytest.raises(CompressionError, match="layer '0': allocation lamp compares squares"):
        compressor("GraSP", state, allocation="lamp")


def test_moments_in_parts_give_the_same_scores(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kept("SparseGPT", state, 0.4)
    monkeypatch.setattr(activations, "MOMENTS", 1)
    assert all(torch.equal(mask, whole[name]) for name, mask in kept("SparseGPT", state, 0.4).items())


def test_shared_weights_are_masked_and_not_fitted() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    net[2].weight = net[0].weight
    own = State(net, torch.randn(1, 8))
    found = compressor("WT", own, refit=True).compress(0.6).network
    mask = named_masks(found)["0.weight"]
    torch.testing.assert_close(found[0].weight.detach(), net[0].weight.detach() * mask)
    torch.testing.assert_close(found[2].weight.detach(), found[0].weight.detach())


@pytest.mark.parametrize("label", ["Wanda", "SparseGPT", "WT (layer)"])
def test_names_of_combinations_take_patterns(label: str, state: State) -> None:
    masks = named_masks(compressor(label, state, pattern=(2, 4)).compress(1.0).network)
    assert float(masks["2.weight"].float().mean()) == 0.5


@pytest.mark.parametrize("label", ["GraSP", "SynFlow", "Taylor", "SNIP"])
def test_frozen_weights_and_attention_are_scored(label: str) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3)).eval()
    layer.linear1.weight.requires_grad_(False)
    data = Calibration(torch.randn(32, 4, 16), torch.arange(32) % 3)
    spec = configure(label, {})
    own = State(net, torch.randn(1, 4, 16))
    original = count(net, own.example)
    made = Compressor(make_method(spec.entry, spec.settings), own, original, data, generator(1))
    assert made.compress(0.5).count.parameters <= 0.5 * original.parameters
    assert not layer.linear1.weight.requires_grad


def test_the_method_that_lacks_data_is_named(state: State) -> None:
    spec = configure("SparseGPT", {})
    with pytest.raises(CompressionError, match="SparseGPT needs calibration data"):
        Compressor(
            make_method(spec.entry, spec.settings), state, count(state.network, state.example), None, generator(1)
        )
