"""Compensated rounding: the codes of a naive OBQ, smaller errors of outputs, weights that stay when rounded again."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import build, write_whole
from experiment.layers.compensated_rounding import DAMPING, Grid, compensate, round_columns, rounded_weight
from experiment.layers.factored_layers import write_factors
from experiment.layers.masks import bake_masks, named_masks, stored
from experiment.layers.plan import Factors, Plan
from experiment.layers.quantized_weights import add_quantized, encode, named_dtypes, round_to
from experiment.random_streams import generator, seeded


def correlated(*shape: int, dim: int = -1) -> Tensor:
    """Positive inputs, as behind a ReLU, whose channels have a common part."""
    stream = generator("compensated", *shape)
    common = torch.randn([1 if i == dim % len(shape) else size for i, size in enumerate(shape)], generator=stream)
    return (common + 0.5 * torch.randn(shape, generator=stream)).relu()


def naive(W_FN: np.ndarray, H_NN: np.ndarray, S_FN: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """OBQ in a fixed order, row by row: after each weight its row and column leave the explicit inverse."""
    rounded = W_FN.copy()
    for f in range(len(W_FN)):
        w, inverse = W_FN[f].copy(), np.linalg.inv(H_NN)
        for i in range(len(w)):
            rounded[f, i] = np.clip(np.rint(w[i] / S_FN[f, i]), low[f, i], high[f, i]) * S_FN[f, i]
            w -= (w[i] - rounded[f, i]) / inverse[i, i] * inverse[i]
            inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return rounded


@pytest.mark.parametrize("columns", [1, 12, 150])
@pytest.mark.parametrize("places", [5, 400])
def test_codes_are_those_of_a_naive_obq(columns: int, places: int) -> None:
    """Fewer places than columns included; 150 columns are more than a block."""
    stream = generator("naive", columns, places)
    W_OFN = torch.randn(2, 4, columns, generator=stream, dtype=torch.float64)
    X_ONP = torch.stack([correlated(columns, places, dim=0), correlated(columns, places + 1, dim=0)[:, 1:]]).double()
    H_ONN = X_ONP @ X_ONP.mT / places
    scales = W_OFN.abs().amax(2, keepdim=True).expand_as(W_OFN) / 7
    high = torch.randint(0, 8, W_OFN.shape, generator=stream).double()
    found = round_columns(W_OFN, H_ONN, Grid(scales, -high, high))
    for o in range(2):
        H_NN = H_ONN[o].numpy() + DAMPING * np.trace(H_ONN[o].numpy()) / columns * np.eye(columns)
        expected = naive(*(t.numpy() for t in (W_OFN[o],)), H_NN, *(t[o].numpy() for t in (scales, -high, high)))
        np.testing.assert_allclose(found[o].numpy(), expected, rtol=1e-9, atol=1e-12)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    # maker, shape of inputs, largest error of outputs as a share of that of nearest
    "linear": (lambda: nn.Linear(40, 12), (300, 40), 0.6),
    "tokens": (lambda: nn.Linear(24, 12), (40, 9, 24), 0.6),
    "conv": (lambda: nn.Conv2d(6, 10, 3, padding=1, stride=2), (40, 6, 9, 9), 0.6),
    "conv1d": (lambda: nn.Conv1d(8, 6, 5, dilation=2), (40, 8, 20), 0.6),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), (40, 8, 7, 7), 0.9),  # filters that read few inputs
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (40, 8, 7, 7), 0.99),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), (40, 8, 5, 5), 0.9),
}


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4/4"])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_are_nearer_than_with_rounding_to_nearest(kind: str, dtype: str) -> None:
    make, shape, limit = LAYERS[kind]
    with seeded("compensated", kind):
        layer = make()
    x, quantized = correlated(*shape, dim=-1 if isinstance(layer, nn.Linear) else 1), copy.deepcopy(layer)
    add_quantized(quantized, {"": dtype})
    with torch.no_grad():
        y, nearest = layer(x), quantized(x)
        compensate(quantized, x)
        error, before = (quantized(x) - y).square().mean(), (nearest - y).square().mean()
    assert torch.equal(quantized.weight, stored(quantized, "weight")), "rounding the masters again changes nothing"
    assert torch.equal(encode(quantized.weight, dtype)[1], encode(layer.weight, dtype)[1])
    assert 0 < error < limit * before, float(error / before)


def test_uncorrelated_inputs_leave_nearest() -> None:
    layer = nn.Linear(16, 8)
    add_quantized(layer, {"": "int4"})
    expected = layer.weight.detach().clone()
    compensate(layer, 3 * torch.eye(16))
    assert torch.equal(layer.weight, expected)


class Net(nn.Module):
    """A convolution, one that is used twice, an embedding, and linear layers of which one shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.table, self.fc, self.last = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16, bias=False)
        self.last.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.first(x))))))
        return self.last(torch.relu(self.fc(x.mean((2, 3)) + self.table.weight.mean(0))))


def test_each_layer_sees_the_network_in_which_those_before_it_are_rounded() -> None:
    with seeded("compensated"):
        network = Net().eval()
    x, plan = correlated(50, 3, 8, 8, dim=1), Plan(quantized=dict.fromkeys(("first", "twice", "fc"), "int4"))
    made = build(network, plan)
    compensate(made, x)
    assert torch.equal(stored(made.twice, "weight"), network.twice.weight), "used twice: to nearest, from its master"
    seen = []
    made.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made(x)
    alone = copy.deepcopy(network.fc)
    add_quantized(alone, {"": "int4"})
    compensate(alone, seen[0])
    assert torch.equal(alone.weight, made.fc.weight)
    assert not torch.equal(made.fc.weight, round_to(network.fc.weight, "int4"))
    add_quantized(network, {"last": "int4"})
    before = stored(network.last, "weight").clone()
    compensate(network, x)
    assert torch.equal(stored(network.last, "weight"), before), "shared with the embedding"


def test_masks_and_factors() -> None:
    with seeded("compensated"):
        network = nn.Sequential(nn.Conv2d(4, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 20)).eval()
    x, mask = correlated(200, 4, 5, 5, dim=1), torch.rand(20, 108, generator=generator("compensated")) < 0.5
    exact = Plan(masks={"3.weight": mask}, factors={"0": Factors(6, bias=True)})
    U, S, Vh = torch.linalg.svd(network[0].weight.detach().flatten(1)[None])
    whole, rounded = build(network, exact), build(network, replace(exact, quantized={"0": "int4", "3": "int4/9"}))
    for built in (whole, rounded):
        write_whole(built, network, exact)
        write_factors(built[0], U[..., :6] * S[:, None, :6], Vh[:, :6])
    nearest = bake_masks(rounded)
    compensate(rounded, x)
    made = bake_masks(rounded)
    assert torch.equal(named_masks(rounded)["3.weight"], mask)
    assert not made[3].weight[~mask].any()
    assert set(named_dtypes(rounded)) == {"0.encoder.weight", "0.decoder.weight", "3.weight"}
    for name in named_dtypes(rounded):
        assert not torch.equal(made.get_parameter(name), nearest.get_parameter(name))
    with torch.no_grad():
        error, before = ((n(x) - whole(x)).square().mean() for n in (made, nearest))
    assert error < 0.8 * before


def test_inputs_that_are_not_finite_are_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    add_quantized(network, {"1": "int4"})
    with pytest.raises(CompressionError, match="layer '1': its inputs must be finite"):
        compensate(network, torch.tensor([[1.0, 2.0, torch.inf, 0.0]]))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_mask_is_compensated_as_by_least_squares(groups: int) -> None:
    """Of every filter alone, the weights that stay; rounding them costs little more."""
    with seeded("masked", groups):
        layer = nn.Conv1d(6 * groups, 8 * groups, 5, groups=groups)
    X_ONP = torch.stack([correlated(30, 400 + o, dim=0)[:, o:] for o in range(groups)]).double()
    H_ONN = X_ONP @ X_ONP.mT / 400
    weight = layer.weight.detach()
    mask = torch.rand(weight.shape, generator=generator("mask", groups)) < 0.5

    def error(other: Tensor) -> float:
        change_OFN = (weight - other).double().flatten(1).unflatten(0, (groups, -1))
        return float(((change_OFN @ H_ONN) * change_OFN).sum())

    best = torch.zeros(weight.shape, dtype=torch.float64).flatten(1)
    for f, (row, kept) in enumerate(zip(weight.double().flatten(1), mask.flatten(1), strict=True)):
        H_NN = H_ONN[f // 8]
        best[f, kept] = torch.linalg.solve(H_NN[kept][:, kept], (H_NN @ row)[kept])
    masked = rounded_weight(layer, weight, None, mask, H_ONN)
    assert not masked[~mask].any()
    least = error(best.reshape(weight.shape))
    assert least <= error(masked) < 1.05 * least
    assert error(masked) < 0.5 * error(weight * mask)
    rounded = rounded_weight(layer, weight, "int8", mask, H_ONN)
    assert torch.equal(round_to(rounded, "int8"), rounded)
    assert not rounded[~mask].any()
    assert error(rounded) == pytest.approx(error(masked), rel=0.05)
