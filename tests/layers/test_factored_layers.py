"""Folding, factors and their costs, against index arithmetic in numpy and torch's own convolution."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.compressible import filters_of, trace_layers
from experiment.layers.factored_layers import (
    FOLDINGS,
    balance,
    flops,
    fold,
    make_layer,
    max_rank,
    parameters,
    product,
    read_factors,
    split_kernel,
    unfold,
    write_factors,
)
from experiment.layers.plan import Factors
from experiment.measure import count
from experiment.random_streams import generator

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch pads a copy: all right

CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "wide kernel": {"kernel_size": (1, 3), "padding": (0, 1)},
    "tall kernel": {"kernel_size": (5, 2), "padding": (2, 1), "bias": False},
    "strides": {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2)},
    "dilation": {"kernel_size": (3, 2), "dilation": (2, 3), "stride": (1, 2), "padding": 1},
    "pointwise": {"kernel_size": 1, "stride": 2, "bias": False},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 2},
    "reflect": {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "reflect", "stride": (1, 2)},
    "circular": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    "replicate": {"kernel_size": 3, "padding": "same", "padding_mode": "replicate"},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator("test", "lowrank", seed), dtype=torch.float64)


def make_conv(case: str) -> nn.Conv2d:
    conv = nn.Conv2d(6, 5, dtype=torch.float64, **CONVOLUTIONS[case])
    with torch.no_grad():
        for seed, parameter in enumerate(conv.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    return conv


def svd_factors(weight: Tensor, rank: int, groups: int, folding: int) -> tuple[Tensor, Tensor]:
    """Unbalanced factors by numpy, slice by slice."""
    U, S, Vh = np.linalg.svd(fold(weight.detach(), groups, folding).numpy(), full_matrices=False)
    return torch.from_numpy(U[:, :, :rank] * S[:, None, :rank]), torch.from_numpy(Vh[:, :rank].copy())


def decompose(layer: nn.Module, rank: int, groups: int, folding: int) -> nn.Sequential:
    bias = layer.bias is not None
    factored = make_layer(layer, Factors(rank, groups, folding, bias))
    write_factors(factored, *svd_factors(layer.weight, rank, groups, folding), folding)
    if bias:
        with torch.no_grad():
            factored.get_submodule("decoder").bias.copy_(layer.bias)
    return factored


@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_fold_places_every_element(folding: int, groups: int) -> None:
    F, C, X, Y = shape = (3, 6, 2, 5)
    W = np.arange(np.prod(shape)).reshape(shape)
    folded = fold(torch.from_numpy(W), groups, folding).numpy()
    width = C // groups
    for f, c, x, y in np.ndindex(F, C, X, Y):
        g, i = divmod(c, width)
        row, column = {
            0: (f, (i * X + x) * Y + y),
            1: (f * X + x, y * width + i),
            2: (f * Y + y, x * width + i),
            3: ((f * X + x) * Y + y, i),
        }[folding]
        assert folded[g, row, column] == W[f, c, x, y]


@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 6, 1, 1), (2, 6, 4, 1)])
def test_unfold_inverts_fold(folding: int, shape: tuple[int, ...]) -> None:
    W = normal(*shape)
    for groups in (1, 2, 6):
        assert torch.equal(unfold(fold(W, groups, folding), W.shape, folding), W)


def test_linear_weight_folds_as_it_is() -> None:
    W = normal(4, 6)
    assert torch.equal(fold(W)[0], W)
    assert torch.equal(fold(W, 3)[1], W[:, 2:4])
    assert torch.equal(unfold(fold(W, 3), W.shape), W)


@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_full_rank_gives_the_same_output(case: str, folding: int) -> None:
    conv, x = make_conv(case), normal(2, 6, 11, 12, seed=7)
    expected = conv(x)
    info = trace_layers(conv, x)[""]
    for groups in (1, 2, 3, 6):
        layer = decompose(conv, max_rank(info, groups, folding), groups, folding)
        torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(product(layer), conv.weight.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_truncated_layer_computes_with_its_product(case: str, folding: int) -> None:
    """The output is that of the dense layer with the product as weight, which is the truncated SVD slice by slice."""
    conv, x = make_conv(case), normal(2, 6, 11, 12, seed=7)
    layer = decompose(conv, 2, 3, folding)
    U, V = svd_factors(conv.weight, 2, 3, folding)
    dense = make_conv(case)
    with torch.no_grad():
        dense.weight.copy_(unfold(U @ V, conv.weight.shape, folding))
    torch.testing.assert_close(product(layer), dense.weight.detach())
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_linear_layer_on_sequences(groups: int) -> None:
    linear, x = nn.Linear(8, 5, dtype=torch.float64), normal(3, 7, 8)
    layer = decompose(linear, min(5, 8 // groups), groups, 0)
    torch.testing.assert_close(layer(x), linear(x))
    torch.testing.assert_close(product(layer), linear.weight.detach())


@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_costs_equal_what_is_counted(case: str, folding: int) -> None:
    conv, x = make_conv(case), normal(1, 6, 11, 12)
    info = trace_layers(conv, x)[""]
    for groups in (1, 2, 6):
        for rank in (1, 2):
            layer = make_layer(conv, Factors(rank, groups, folding, info.bias))
            counted = count(layer, x)
            bias = 5 if info.bias else 0
            assert counted.parameters == parameters(info, rank, groups, folding) + bias
            assert counted.flops == flops(info, rank, groups, folding)


def test_costs_of_a_linear_layer() -> None:
    linear, x = nn.Linear(8, 5), torch.zeros(1, 7, 8)
    info = trace_layers(linear, x)[""]
    counted = count(make_layer(linear, Factors(2, 4, bias=True)), x)
    assert counted.parameters == parameters(info, 2, 4) + 5 == 2 * (4 * 5 + 8) + 5
    assert counted.flops == flops(info, 2, 4) == 7 * 2 * (4 * 5 + 8)
    assert max_rank(info, 4) == 2


def test_cost_formulas_by_hand() -> None:
    """64 -> 32 filters of 3x3 with stride 2: the textbook values, written out."""
    conv = nn.Conv2d(64, 32, 3, stride=2, padding=1, bias=False)
    info = trace_layers(conv, torch.zeros(1, 64, 8, 8))[""]
    assert parameters(info, 5, 4, 0) == 5 * (4 * 32 + 64 * 9)
    assert parameters(info, 5, 4, 1) == parameters(info, 5, 4, 2) == 5 * (4 * 32 * 3 + 64 * 3)
    assert parameters(info, 5, 4, 3) == 5 * (4 * 32 * 9 + 64)
    assert flops(info, 5, 4, 0) == 16 * 5 * (4 * 32 + 64 * 9)
    assert flops(info, 5, 4, 1) == 5 * (4 * 32 * 3 * 16 + 64 * 3 * 8 * 4)
    assert flops(info, 5, 4, 3) == 5 * (4 * 32 * 9 * 16 + 64 * 64)
    assert [max_rank(info, 4, folding) for folding in FOLDINGS] == [32, 48, 48, 16]


def test_split_kernel() -> None:
    splits = [split_kernel((3, 5), folding) for folding in FOLDINGS]
    assert splits == [((3, 5), (1, 1)), ((1, 5), (3, 1)), ((3, 1), (1, 5)), ((1, 1), (3, 5))]


def test_new_layers_are_plain_and_take_over_what_the_old_one_had() -> None:
    conv = nn.Conv2d(6, 5, 3, dtype=torch.bfloat16).requires_grad_(False).eval()
    layer = make_layer(conv, Factors(2, 3, 0, True))
    assert [type(m) for m in layer] == [nn.Conv2d, nn.Conv2d]
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in layer.parameters())
    assert not any(m.training for m in layer.modules())
    assert {p.device.type for p in make_layer(conv.to("meta"), Factors(2)).parameters()} == {"meta"}


def test_no_random_numbers_are_drawn() -> None:
    before = torch.get_rng_state()
    make_layer(nn.utils.skip_init(nn.Linear, 8, 5), Factors(2, 4))
    make_layer(nn.utils.skip_init(nn.Conv2d, 8, 5, 3), Factors(2, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("factors", [Factors(0), Factors(1, 4), Factors(1, 1, 4)])
def test_impossible_factors_are_refused(factors: Factors) -> None:
    with pytest.raises(CompressionError, match="6 inputs has no factors"):
        make_layer(nn.Conv2d(6, 5, 3), factors)


def test_linear_layers_have_one_folding_and_others_none() -> None:
    with pytest.raises(CompressionError, match=r"folding one of \[0\]"):
        make_layer(nn.Linear(6, 5), Factors(1, 1, 1))
    with pytest.raises(CompressionError, match="Got a BatchNorm2d"):
        make_layer(nn.BatchNorm2d(6), Factors(1))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_balanced_factors_have_the_same_product_and_share_its_singular_values(
    case: str, folding: int, groups: int
) -> None:
    layer = make_layer(make_conv(case), Factors(2, groups, folding))
    for seed, factor in enumerate(layer.children()):
        factor.weight.data.copy_(normal(*factor.weight.shape, seed=seed) * 10**seed)
    U, V = read_factors(layer, folding)
    before = product(layer)
    torch.testing.assert_close(unfold(U @ V, before.shape, folding), before)

    balance(layer, folding)

    torch.testing.assert_close(product(layer), before, rtol=1e-4, atol=1e-4)
    U, V = read_factors(layer, folding)
    values = np.linalg.svd((U @ V).numpy(), compute_uv=False)[:, :2]
    for gram in (U.mT @ U, V @ V.mT):
        np.testing.assert_allclose(gram.numpy(), [np.diag(row) for row in values], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("output_size", [None, (13, 36), (14, 35), (2, 4, 15, 34)])
def test_transposed_layer_takes_an_output_size(folding: int, output_size: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(
        6, 4, (3, 4), stride=(3, 5), padding=1, output_padding=(2, 0), groups=2, dtype=torch.float64
    )
    x, filters = normal(2, 6, 5, 7), filters_of(up, up.weight.detach())
    layer = make_layer(up, Factors(max_rank(trace_layers(up, x)[""], 1, folding), 1, folding, True))
    U, S, Vh = torch.linalg.svd(fold(filters, 1, folding, up.groups), full_matrices=False)
    write_factors(layer, U * S[:, None], Vh, folding)
    with torch.no_grad():
        layer.get_submodule("decoder").bias.copy_(up.bias)
    torch.testing.assert_close(layer(x, output_size), up(x, output_size))
    with pytest.raises(ValueError, match="requested an output size"):
        layer(x, output_size=(20, 36))
