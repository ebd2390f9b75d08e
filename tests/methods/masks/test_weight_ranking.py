"""Orders of weights from any scores: global, within layers, at random; and that only masks decide what is alive."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import build, expand
from experiment.layers.compressible import compressible_layers
from experiment.layers.masks import bake_masks, named_masks
from experiment.layers.plan import Kept, Plan, State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Budget, Compressor, make_method
from experiment.methods.masks.settings import WeightSettings
from experiment.methods.masks.weight_ranking import (
    WeightRanking,
    WeightScores,
    plan_masked,
    plan_prefix,
    rank_weights,
    ranked,
)
from experiment.methods.starting_state import Start, start_of
from experiment.random_streams import generator


def rank_within_layers(start: Start, scores: WeightScores) -> WeightRanking:
    return ranked(start, scores, WeightSettings(allocation="uniform"))


def compressor(label: str, state: State, seed: int = 0) -> Compressor:
    entry = METHODS[label]
    counted = count(state.network, state.example)
    return Compressor(
        make_method(entry, entry.settings(**entry.preset)), state, counted, None, generator("test_order", seed)
    )


def masks_of(network: nn.Module, state: State) -> dict[str, np.ndarray]:
    """Layer -> mask, all True where there is none."""
    found = named_masks(network)
    return {
        name: found[f"{name}.weight"].numpy()
        if f"{name}.weight" in found
        else np.ones(state.network.get_submodule(name).weight.shape, bool)
        for name in compressible_layers(state.network, state.example)
    }


def chain(*sizes: tuple[int, int]) -> State:
    """Linear layers without bias."""
    layers = [nn.Linear(c, f, bias=False) for f, c in sizes]
    return State(nn.Sequential(*layers).eval(), torch.zeros(1, sizes[0][1]))


def scored(state: State, scores: Mapping[str, list[float]]) -> dict[str, Tensor]:
    return {n: torch.tensor(v).reshape(state.network.get_submodule(n).weight.shape) for n, v in scores.items()}


def in_order(ranking: WeightRanking) -> list[int]:
    """The places of live weights in the concatenation of all, in the order in which they are added."""
    found: list[int] = []
    for number in range(1, sum(ranking.start.alive_numbers.values()) + 1):
        kept = torch.cat([mask.flatten() for mask in ranking.of_number(number).values()]).nonzero().flatten().tolist()
        assert set(kept) > set(found)
        found += [place for place in kept if place not in found]
    return found


def test_any_scores_make_an_order() -> None:
    """Negative ones too; equal ones as the network has them."""
    state = chain((2, 2), (1, 2))
    order = rank_weights(start_of(state), scored(state, {"0": [-1.0, 3.0, -1.0, 0.0], "1": [0.0, -2.0]}))
    assert in_order(order) == [1, 3, 4, 0, 2, 5]
    plan = plan_prefix(order, Budget("parameters", 2, 6))
    assert plan.masks["0.weight"].tolist() == [[False, True], [False, True]]
    assert plan.masks["1.weight"].tolist() == [[False, False]]
    assert plan.parameters == 2


def test_the_score_of_a_masked_place_does_not_matter() -> None:
    plain = chain((2, 2), (1, 2))
    state = State(plain.network, plain.example, {"0.weight": torch.tensor([[False, True], [True, True]])})
    for value in (torch.nan, torch.inf, 100.0):
        scores = scored(state, {"0": [value, 3.0, -1.0, 0.0], "1": [0.0, -2.0]})
        assert in_order(rank_weights(start_of(state), scores)) == [1, 3, 4, 2, 5]
        assert in_order(rank_within_layers(start_of(state), scores)) == [1, 4, 3, 5, 2]


@pytest.mark.parametrize("order", [rank_weights, rank_within_layers])
def test_scores_that_are_not_finite_are_named(order: Callable[..., object]) -> None:
    state = chain((2, 2), (1, 2))
    with pytest.raises(CompressionError, match=r"layer '1': the scores of its weights must be finite"):
        order(start_of(state), scored(state, {"0": [1.0, 1.0, 1.0, 1.0], "1": [0.0, torch.nan]}))


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (None, "must be a mapping from layers to tensors. Got a NoneType"),
        ({}, r"layer '0': .* must be a tensor of shape \(2, 2\). Got a NoneType"),
        ({"0": torch.ones(3)}, r"layer '0': .* must be a tensor of shape \(2, 2\). Got shape \(3,\)"),
        ({"0": torch.ones(2, 2), "1": [1.0, 2.0]}, r"layer '1': .* must be a tensor of shape \(1, 2\). Got a list"),
    ],
)
@pytest.mark.parametrize("order", [rank_weights, rank_within_layers])
def test_scores_of_another_form_are_told(order: Callable[..., object], scores: object, told: str) -> None:
    """Users write their own."""
    with pytest.raises(CompressionError, match=told):
        order(start_of(chain((2, 2), (1, 2))), scores)


def by_hand(sizes: list[int], num_kept: int) -> list[int]:
    """How many weights every layer keeps: steps (k - 1/2) / n, in order, ties in layer order."""
    steps = sorted(((k - 0.5) / n, layer) for layer, n in enumerate(sizes) for k in range(1, n + 1))
    return [sum(1 for _, at in steps[:num_kept] if at == layer) for layer in range(len(sizes))]


@pytest.mark.parametrize("label", ["WT (layer)", "Random (layer)"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.13])
def test_every_layer_keeps_the_same_share_and_the_budget_is_met(state: State, label: str, keep: float) -> None:
    made = compressor(label, state)
    compressed = made.compress(keep)
    assert compressed.count.parameters == int(keep * made.original.parameters)
    masks = masks_of(compressed.network, state)
    sizes = [mask.size for mask in masks.values()]
    kept = [int(mask.sum()) for mask in masks.values()]
    assert kept == by_hand(sizes, sum(kept))
    shares = [n / size for n, size in zip(kept, sizes, strict=True)]
    assert max(shares) - min(shares) <= 1 / min(sizes) + 1e-9


@pytest.mark.parametrize("keep", [0.8, 0.3])
def test_layers_keep_their_largest_magnitudes(state: State, keep: float) -> None:
    network = compressor("WT (layer)", state).compress(keep).network
    for name, mask in masks_of(network, state).items():
        magnitudes = np.abs(state.network.get_submodule(name).weight.detach().numpy())
        assert not mask.all()
        assert magnitudes[mask].min() >= magnitudes[~mask].max()


def test_a_cascade_takes_the_same_share_of_what_is_left() -> None:
    state = chain((20, 10), (10, 20))
    masks = {"0.weight": torch.rand(20, 10, generator=generator("m")) < 0.5}
    left = int(masks["0.weight"].sum())
    start = start_of(State(state.network, state.example, masks))
    scores = {name: torch.rand(start.network.get_submodule(name).weight.shape) for name in ("0", "1")}
    plan = plan_prefix(rank_within_layers(start, scores), Budget("parameters", 100, 400))
    kept = [int(plan.masks[f"{name}.weight"].sum()) for name in ("0", "1")]
    assert kept == by_hand([left, 200], 100)
    assert not (plan.masks["0.weight"] & ~masks["0.weight"]).any()


@pytest.mark.parametrize("label", ["Random", "Random (layer)"])
def test_random_weights_come_from_the_seed_alone(state: State, label: str) -> None:
    one, again, other = (masks_of(compressor(label, state, seed).compress(0.5).network, state) for seed in (0, 0, 1))
    assert all(np.array_equal(mask, again[name]) for name, mask in one.items())
    assert not all(np.array_equal(mask, other[name]) for name, mask in one.items())


def test_random_weights_are_kept_equally_often() -> None:
    """A quarter of 400 weights, whatever their layer, value or place: 100 draws, four standard errors."""
    state, kept = chain((10, 20), (20, 10)), np.zeros(400)
    for seed in range(100):
        masks = masks_of(compressor("Random", state, seed).compress(0.25).network, state)
        kept += np.concatenate([mask.ravel() for mask in masks.values()])
    assert kept.sum() == 100 * 100
    assert abs(kept[:200].sum() / 100 - 50) < 4 * np.sqrt(400 * 0.25 * 0.75 / 4 / 100)
    assert kept.min() > 0
    assert ((kept - 25) ** 2).mean() == pytest.approx(100 * 0.25 * 0.75, rel=0.3)


def test_scales_are_of_the_original_shape_and_multiply_what_is_written(state_of: Callable[[str], State]) -> None:
    whole = state_of("cnn")
    kept = {"0": Kept(out=(1, 2, 5)), "1": Kept(out=(1, 2, 5)), "4": Kept(inputs=(1, 2, 5))}
    sliced = build(whole.network, Plan(kept=kept)).eval()
    state = expand(sliced, whole.network, Plan(kept=kept), whole.example)
    start = start_of(state)
    scale = torch.rand(12, 3, 3, 3, generator=generator("scale"))
    mask = torch.rand(12, 3, 3, 3, generator=generator("mask")) < 0.5
    plan = plan_masked(start, {"4.weight": mask}, {"4.weight": scale})
    assert plan.scales["4.weight"].shape == (12, 8, 3, 3)
    assert plan.parameters == start.count.parameters - int((~mask).sum())
    entry = METHODS["WT"]
    made = Compressor(make_method(entry, entry.settings(**entry.preset)), state, start.count, None, generator("x"))
    written = bake_masks(made.instantiate(plan)).get_submodule("4").weight
    assert torch.equal(written, start.network.get_submodule("4").weight * scale * mask)
    assert "scales" not in plan.to_data()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_only_masks_hold_weights_at_zero(optimizer: str) -> None:
    """A bias and a weight that happen to be zero train on; coupled weight decay and momentum revive no masked one."""
    state = State(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval(), torch.zeros(1, 6))
    with torch.no_grad():
        for layer in (state.network[0], state.network[2]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator("w", layer.in_features)))
            layer.bias.zero_()
            layer.weight[0, 0] = 0
    network = compressor("Random (layer)", state, 1).compress(0.6).network.train()
    masks = {name: mask.clone() for name, mask in named_masks(network).items()}
    zeros = [name for name, mask in masks.items() if mask[0, 0]]
    assert zeros  # a weight that is zero and alive
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    }
    steps = make[optimizer](network.parameters())
    x, y = torch.randn(32, 6, generator=generator("x")), torch.arange(32) % 3
    for _ in range(5):
        steps.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        steps.step()
    plain = bake_masks(network)
    for name, mask in masks.items():
        weight = plain.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].all()
    assert plain[0].bias[masks["2.weight"].any(0)].all()  # of units that anything reads
    assert plain[2].bias.all()
    again = expand(network, state.network, Plan(masks=masks), state.example)
    assert count(network, state.example).parameters == start_of(again).count.parameters
