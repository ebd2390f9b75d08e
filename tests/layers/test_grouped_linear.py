"""The block-diagonal linear layer against an explicit block-diagonal matrix and a grouped convolution."""

import pytest
import torch
from torch import nn

from experiment import random_streams
from experiment.layers.grouped_linear import GroupedLinear


def make(in_features: int, out_features: int, groups: int) -> GroupedLinear:
    with random_streams.seeded("grouped", in_features, out_features, groups):
        return GroupedLinear(in_features, out_features, groups)


@pytest.mark.parametrize(("in_features", "out_features", "groups"), [(6, 4, 2), (6, 6, 3), (4, 8, 4), (5, 3, 1)])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (0,)])
def test_equals_block_diagonal(in_features: int, out_features: int, groups: int, leading: tuple[int, ...]) -> None:
    layer = make(in_features, out_features, groups)
    x = torch.randn(*leading, in_features, generator=random_streams.generator("x"))
    dense = torch.block_diag(*layer.weight.chunk(groups))
    assert dense.shape == (out_features, in_features)
    torch.testing.assert_close(layer(x), x @ dense.T)


def test_weight_is_laid_out_as_a_grouped_convolutions() -> None:
    layer, convolution = make(6, 4, 2), nn.Conv2d(6, 4, 1, groups=2, bias=False)
    x = torch.randn(3, 6, generator=random_streams.generator("x"))
    with torch.no_grad():
        convolution.weight.copy_(layer.weight.reshape(convolution.weight.shape))
    torch.testing.assert_close(layer(x), convolution(x[..., None, None]).flatten(1))


def test_gradients() -> None:
    layer = make(4, 6, 2).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True, generator=random_streams.generator("x"))
    assert torch.autograd.gradcheck(layer, (x,))


def test_non_contiguous_input() -> None:
    layer = make(6, 4, 2)
    x = torch.randn(6, 3, generator=random_streams.generator("x")).T
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_initialisation_is_a_linear_layers() -> None:
    """Uniform within 1 / sqrt(inputs of a group), as for the layer that one group is."""
    layer = make(400, 200, 4)
    assert layer.weight.shape == (200, 100)
    bound = 1 / 100**0.5
    assert 0.99 * bound < layer.weight.abs().max().item() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize(("in_features", "out_features"), [(5, 4), (4, 5)])
def test_groups_must_divide(in_features: int, out_features: int) -> None:
    with pytest.raises(ValueError, match="groups must divide both features"):
        GroupedLinear(in_features, out_features, 2)


def test_says_what_it_is() -> None:
    assert repr(make(6, 4, 2)) == "GroupedLinear(in_features=6, out_features=4, groups=2)"
