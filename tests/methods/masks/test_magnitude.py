"""Weight thresholding: exactly the budget, the largest magnitudes, stable ties, and what a cascade may not revive."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, InfeasibleBudget
from experiment.layers.build import build, expand
from experiment.layers.compressible import compressible_layers
from experiment.layers.masks import bake_masks, named_masks
from experiment.layers.plan import Kept, Plan, State
from experiment.measure import count
from experiment.methods.base import Budget, Compressor, Quantity
from experiment.methods.masks.magnitude import wt
from experiment.methods.masks.settings import WeightSettings
from experiment.random_streams import generator


def compressor(state: State, original: State | None = None) -> Compressor:
    original = original or state
    counted = count(original.network, original.example)
    return Compressor(wt(WeightSettings()), state, counted, None, generator("test_wt"))


def plan_for(state: State, limit: int, quantity: Quantity = "parameters") -> Plan:
    made = compressor(state)
    return made.method.plan(made.analysis, Budget(quantity, limit, 1_000_000))


def weights(network: nn.Module, state: State) -> dict[str, np.ndarray]:
    layers = compressible_layers(state.network, state.example)
    return {name: network.get_submodule(name).weight.detach().numpy() for name in layers}


def two_layers(first: list[list[float]], second: list[list[float]]) -> State:
    """Linear layers without bias on sequences of one element."""
    layers = [nn.Linear(len(w[0]), len(w), bias=False) for w in (first, second)]
    with torch.no_grad():
        for layer, values in zip(layers, (first, second), strict=True):
            layer.weight.copy_(torch.tensor(values))
    return State(nn.Sequential(*layers), torch.zeros(1, len(first[0])))


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2])
def test_keeps_exactly_the_budget_and_the_largest(state: State, keep: float) -> None:
    made = compressor(state)
    compressed = made.compress(keep)
    assert compressed.count.parameters == int(keep * made.original.parameters)
    before, after = weights(state.network, state), weights(bake_masks(compressed.network), state)
    magnitudes = np.concatenate([np.abs(w).ravel() for w in before.values()])
    fixed = made.original.parameters - len(magnitudes)
    threshold = np.sort(magnitudes)[::-1][compressed.count.parameters - fixed - 1]
    for name, weight in before.items():
        assert np.array_equal(after[name], np.where(np.abs(weight) >= threshold, weight, 0))


def test_budget_of_flops_takes_the_longest_prefix(state: State) -> None:
    """Walked weight by weight, each costing its layer's positions."""
    made = compressor(state)
    layers = compressible_layers(state.network, state.example)
    before = weights(state.network, state)
    priced = [(-abs(float(v)), layers[n].positions) for n, w in before.items() for v in w.ravel()]
    for keep in (0.8, 0.3):
        limit = int(keep * made.original.flops)
        spent = num_kept = 0
        for _, price in sorted(priced, key=lambda pair: pair[0]):
            if spent + price > limit:
                break
            spent, num_kept = spent + price, num_kept + 1
        compressed = made.compress(keep, "flops")
        assert compressed.count.flops_unmasked == spent
        assert compressed.count.flops == made.original.flops  # what a dense kernel computes is not lowered
        masked = sum(int((~mask).sum()) for mask in named_masks(compressed.network).values())
        assert masked == len(priced) - num_kept


def test_ties_go_by_network_order() -> None:
    state = two_layers([[1, -1], [2, 1]], [[-1, 1]])
    kept = {4: [[1, 1], [1, 1]], 3: [[1, 1], [1, 0]], 2: [[1, 0], [1, 0]]}
    for limit, first in kept.items():
        plan = plan_for(state, limit)
        assert plan.masks["0.weight"].int().tolist() == first if limit < 4 else "0.weight" not in plan.masks
        assert not plan.masks["1.weight"].any()


def test_zero_that_is_not_masked_counts_as_a_weight() -> None:
    state = two_layers([[0, 0], [3, 1]], [[0, 2]])
    plan = plan_for(state, 5)
    assert plan.parameters == 5
    assert plan.masks["1.weight"].tolist() == [[False, True]]


def test_zero_that_may_live_stands_before_a_masked_weight() -> None:
    plain = two_layers([[9, 0], [3, 1]], [[0, 2]])
    masks = {"0.weight": torch.tensor([[False, False], [True, True]])}
    method = compressor(State(plain.network, plain.example, masks))
    found = [method.analysis.of_number(number) for number in range(5)]
    kept = [set(torch.cat([m.flatten() for m in masks.values()]).nonzero().flatten().tolist()) for masks in found]
    assert kept == [set(), {2}, {2, 5}, {2, 5, 3}, {2, 5, 3, 4}]


def test_layer_kept_whole_has_no_mask_and_shares_are_told() -> None:
    plan = plan_for(two_layers([[5, 6], [7, 8]], [[1, 2]]), 5)
    assert list(plan.masks) == ["1.weight"]
    assert {name: detail["kept"] for name, detail in plan.details.items()} == {"0": 1.0, "1": 0.5}


def test_masked_weights_are_never_revived(state: State) -> None:
    """Not even when retraining of another weight, or of the masked one's former value, made it the largest."""
    first = compressor(state).compress(0.5)
    middle = expand(first.network, state.network, first.plan, state.example)
    with torch.no_grad():
        for name, mask in middle.masks.items():
            middle.network.get_parameter(name)[~mask] = 1000
    second = compressor(middle, state).compress(0.3)
    for name, mask in named_masks(second.network).items():
        assert not (mask & ~middle.masks[name]).any()
    assert second.count.parameters == int(0.3 * count(state.network, state.example).parameters)
    unchanged = compressor(middle, state).compress(0.5)
    assert unchanged.count == first.count


def test_only_channels_that_are_left_compete(state_of: Callable[[str], State]) -> None:
    whole = state_of("cnn")
    kept = {"0": Kept(out=(1, 2, 5)), "1": Kept(out=(1, 2, 5)), "4": Kept(inputs=(1, 2, 5))}
    sliced = build(whole.network, Plan(kept=kept)).eval()
    state = expand(sliced, whole.network, Plan(kept=kept), whole.example)
    made = compressor(state, whole)
    size = count(sliced, whole.example).parameters
    compressed = made.compress((size - 50) / made.original.parameters)
    assert compressed.count.parameters == size - 50
    assert compressed.plan.kept == kept
    values = weights(sliced, State(sliced, whole.example))
    smallest = np.sort(np.concatenate([np.abs(w).ravel() for w in values.values()]))[:50]
    gone = [np.abs(values[name])[~mask.numpy()] for name, mask in by_layer(compressed.network).items()]
    assert np.sort(np.concatenate(gone)) == pytest.approx(smallest)
    after = expand(compressed.network, whole.network, compressed.plan, whole.example)
    torch.testing.assert_close(after.network(whole.example), compressed.network(whole.example))


def by_layer(network: nn.Module) -> dict[str, Tensor]:
    return {name.removesuffix(".weight"): mask for name, mask in named_masks(network).items()}


def test_biases_and_norms_are_paid_first() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1, groups=3))
    state = State(network.eval(), torch.zeros(1, 2, 4, 4))
    fixed = 3 + 6 + 3
    assert plan_for(state, fixed + 4).parameters == fixed + 4
    with pytest.raises(InfeasibleBudget, match=f"smallest network of this method has {fixed} "):
        plan_for(state, fixed - 1)
    assert plan_for(state, 0, "flops").parameters == fixed  # the grouped layer goes, too


def test_network_that_is_one_layer() -> None:
    state = State(nn.Linear(4, 3), torch.zeros(1, 4))
    compressed = compressor(state).compress(0.5)
    assert compressed.count.parameters == 7
    assert int(named_masks(compressed.network)["weight"].sum()) == 4


def test_network_without_compressible_layers() -> None:
    state = State(nn.BatchNorm1d(4).eval(), torch.zeros(1, 4))
    with pytest.raises(InfeasibleBudget):
        compressor(state).compress(0.5)
    assert compressor(state).compress(1).count.parameters == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(state_of: Callable[[str], State], value: float) -> None:
    state = state_of("cnn")
    with torch.no_grad():
        state.network[4].weight[0, 1] = value
    with pytest.raises(CompressionError, match=r"layer '4': weights must be finite\. Got 9 of 864"):
        compressor(state)


def test_masked_network_must_be_baked_first(state_of: Callable[[str], State]) -> None:
    state = state_of("sequences")
    masked = compressor(state).compress(0.5).network
    with pytest.raises(CompressionError, match="Got one that a hook computes"):
        compressor(State(masked, state.example))
    assert compressor(State(bake_masks(masked), state.example)).compress(0.4)
