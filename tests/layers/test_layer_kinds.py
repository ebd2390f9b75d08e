"""Low-rank factors of every kind of layer, against the layer's own output and numpy's best approximations."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.layers.compressible import (
    LayerInfo,
    compressible_layers,
    features_of,
    filters_of,
    groups_of,
    trace_layers,
    weight_of,
)
from experiment.layers.factored_layers import (
    balance,
    flops,
    fold,
    make_layer,
    max_rank,
    parameters,
    product,
    read_factors,
    unfold,
    write_factors,
)
from experiment.layers.plan import Factors
from experiment.layers.sampled_patches import all_outputs, draw_places, input_patches, num_positions, outputs_at
from experiment.measure import count
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.random_streams import generator

KINDS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d, {"kernel_size": 5, "stride": 2, "padding": 2}, (9,)),
    "dilated": (nn.Conv1d, {"kernel_size": 3, "dilation": 2, "padding": "same", "padding_mode": "reflect"}, (9,)),
    "conv3d": (nn.Conv3d, {"kernel_size": (3, 2, 3), "stride": (1, 2, 1), "padding": (1, 0, 1)}, (4, 5, 6)),
    "circular": (nn.Conv3d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 2}, (4, 3, 5)),
    "grouped": (nn.Conv2d, {"kernel_size": (3, 2), "groups": 2, "padding": 1, "stride": (2, 1)}, (7, 6)),
    "depthwise": (nn.Conv2d, {"kernel_size": (5, 3), "groups": 8, "padding": 2, "padding_mode": "replicate"}, (7, 6)),
    "transposed": (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, (4, 5)),
    "transposed, uneven": (
        nn.ConvTranspose2d,
        {"kernel_size": (4, 3), "stride": (1, 3), "padding": (2, 0), "dilation": (2, 1), "output_padding": (0, 2)},
        (4, 5),
    ),
    "transposed, grouped": (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "groups": 2, "bias": False}, (4, 5)),
    "transposed 1d": (nn.ConvTranspose1d, {"kernel_size": 4, "stride": 3, "groups": 4}, (6,)),
    "up 3d": (nn.ConvTranspose3d, {"kernel_size": (2, 3, 2), "stride": (1, 2, 2), "padding": (0, 1, 0)}, (3, 4, 2)),
    "linear": (nn.Linear, {}, (3,)),
    "embedding": (nn.Embedding, {"padding_idx": 2, "scale_grad_by_freq": True}, (3,)),
}  # fmt: skip


def normal(*shape: int, seed: object = 0) -> Tensor:
    return torch.randn(*shape, generator=generator("kinds", str(seed)), dtype=torch.float64)


def made(case: str) -> tuple[nn.Module, Tensor]:
    """A layer of 8 channels, or a vocabulary of 11, and a batch of two inputs."""
    kind, settings, grid = KINDS[case]
    if kind is nn.Embedding:
        layer: nn.Module = nn.Embedding(11, 6, **settings, dtype=torch.float64)
        x = torch.randint(11, (2, *grid), generator=generator("kinds", case))
    else:
        layer = kind(8, 8 if case in ("depthwise", "transposed 1d") else 6, **settings, dtype=torch.float64)
        x = normal(2, *grid, 8) if kind is nn.Linear else normal(2, 8, *grid)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(normal(*parameter.shape, seed=name))
    return layer, x


def every_slicing(info: LayerInfo) -> list[tuple[int, int]]:
    width = 1 if info.kind == "embedding" else info.in_features // info.groups
    return [(k, f) for k in (1, 2, 4) if width % k == 0 for f in range(2 ** len(info.kernel))]


def factored(layer: nn.Module, rank: int, groups: int, folding: int) -> nn.Module:
    """Truncated SVDs by numpy, slice by slice."""
    bias = getattr(layer, "bias", None)
    pair = make_layer(layer, Factors(rank, groups, folding, bias is not None))
    slices = fold(filters_of(layer, layer.get_parameter("weight").detach()), groups, folding, groups_of(layer))
    U, S, Vh = np.linalg.svd(slices.numpy(), full_matrices=False)
    write_factors(
        pair, *(torch.from_numpy(part.copy()) for part in (U[..., :rank] * S[:, None, :rank], Vh[:, :rank])), folding
    )
    if bias is not None:
        with torch.no_grad():
            pair.get_submodule("decoder").bias.copy_(bias)
    return pair


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return made(request.param)


def test_factors_compute_with_their_product_at_the_planned_cost(case: tuple[nn.Module, Tensor]) -> None:
    """At full rank that is the layer itself, at lower ranks the best approximation of every slice."""
    layer, x = case
    weight, blocks = layer.get_parameter("weight").detach(), groups_of(layer)
    filters, info = filters_of(layer, weight), trace_layers(layer, x)[""]
    assert torch.equal(weight_of(layer, filters), weight)
    assert filters.shape == (features_of(layer)[0], features_of(layer)[1] // blocks, *info.kernel)
    for groups, folding in every_slicing(info):
        assert torch.equal(unfold(fold(filters, groups, folding, blocks), filters.shape, folding, blocks), filters)
        full = max_rank(info, groups, folding)
        for rank in {1, (full + 1) // 2, full}:
            pair, dense = factored(layer, rank, groups, folding), copy.deepcopy(layer)
            U, V = (part.clone() for part in read_factors(pair, folding))
            best = weight_of(layer, unfold(U @ V, filters.shape, folding, blocks))
            torch.testing.assert_close(weight_of(layer, product(pair)), best)
            torch.testing.assert_close(pair.weight, best)
            with torch.no_grad():
                dense.get_parameter("weight").copy_(best)
            torch.testing.assert_close(pair(x), dense(x))
            if rank == full:
                torch.testing.assert_close(best, weight)
            balance(pair, folding)
            torch.testing.assert_close(weight_of(layer, product(pair)), best)
            counted = count(pair, x)
            assert counted.parameters == parameters(info, rank, groups, folding) + (
                info.out_features if info.bias else 0
            )
            assert counted.flops == flops(info, rank, groups, folding)
            spectra = LayerSpectra(filters, blocks)
            matrices = [
                torch.cat(list(part), 1) for part in (fold(filters, groups, folding, blocks) - U @ V).split(groups)
            ]
            whole = max(np.linalg.norm(A, 2) for A in fold(filters, 1, folding, blocks).numpy())
            left = max(np.linalg.norm(A.numpy(), 2) for A in matrices)
            assert spectra.exact_error(rank, groups, folding) == pytest.approx(left / whole, abs=1e-6)
            torch.testing.assert_close(torch.matmul(*spectra.factors(rank, groups, folding)), U @ V)


@torch.no_grad()
def test_filters_times_patches_are_the_outputs(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    y, blocks = layer(x), groups_of(layer)
    places = draw_places(num_positions(y, layer), 9, generator("places"))
    slices = fold(filters_of(layer, layer.get_parameter("weight")), blocks=blocks)
    patches = input_patches(x, layer, y.shape, places).flatten(0, 1)
    bias = getattr(layer, "bias", None)
    answers = (slices @ patches.reshape(blocks, -1, len(places))).flatten(0, 1) + (0 if bias is None else bias[:, None])
    torch.testing.assert_close(answers, outputs_at(y, layer, places))
    torch.testing.assert_close(answers, all_outputs(y, layer)[:, places])


def test_a_depthwise_kernel_that_is_separable_needs_rank_one() -> None:
    layer, x = made("depthwise")
    with torch.no_grad():
        layer.weight.copy_(normal(8, 1, 5, 1, seed="tall") * normal(8, 1, 1, 3, seed="wide"))
    for folding in (1, 2):
        torch.testing.assert_close(factored(layer, 1, 1, folding)(x), layer(x))


def test_padding_keeps_its_token_and_its_gradient() -> None:
    layer = made("embedding")[0]
    with torch.no_grad():
        layer.weight[2] = 0
    pair = make_layer(layer, Factors(3))
    write_factors(pair, *LayerSpectra(layer.weight.detach().T).factors(3))
    assert not pair(torch.tensor([2])).any()
    pair(torch.tensor([2, 5])).sum().backward()
    assert not pair.encoder.weight.grad[2].any()
    assert pair.encoder.weight.grad[5].any()
    assert pair.padding_idx == 2
    assert (pair.num_embeddings, pair.embedding_dim) == (11, 6)


def test_layers_without_factors_of_their_own() -> None:
    class Scaled(nn.Embedding):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for layer in (Scaled(5, 4), nn.Embedding(5, 4, max_norm=1.0)):
        network = nn.Sequential(layer, nn.Linear(4, 3))
        assert list(compressible_layers(network, torch.zeros(1, 2, dtype=torch.int64))) == ["1"]
