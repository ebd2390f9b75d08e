"""Cutting channels out of layers: against plain indexing, and the sliced network against its masked twin."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.channels.channel_axes import is_sliceable
from experiment.layers.channels.slicing import mask_channels, slice_channels, unslice
from experiment.layers.plan import Kept
from experiment.random_streams import generator, seeded

KEPT = (0, 2, 3, 7)
FLAT = tuple(channel * 16 + i for channel in (1, 3) for i in range(16))
CHAIN_KEPT = {
    "0": Kept(KEPT),
    "1": Kept(KEPT),
    "3": Kept(KEPT, KEPT),
    "4": Kept(KEPT),
    "5": Kept((1, 3), KEPT),
    "8": Kept(None, FLAT),
}


def chain() -> nn.Sequential:
    """Convolution, BatchNorm, an activation that is not zero at zero, a depthwise layer, PReLU, Flatten, linear."""
    with seeded("test_channels"):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 8, 3, groups=8), nn.PReLU(8),
            nn.Conv2d(8, 4, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 16, 5),
        )  # fmt: skip
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=generator("test_channels"))


def sliced_copy(network: nn.Module, kept: dict[str, Kept]) -> nn.Module:
    sliced = copy.deepcopy(network)
    slice_channels(sliced, kept)
    return sliced


def masked_copy(network: nn.Module, kept: dict[str, Kept]) -> nn.Module:
    masked = copy.deepcopy(network)
    mask_channels(masked, kept)
    return masked


def test_a_linear_layer_is_sliced_like_a_matrix() -> None:
    layer = nn.Linear(5, 4)
    expected = layer.weight.detach().numpy()[np.ix_([0, 2], [1, 3, 4])]
    bias = layer.bias.detach().numpy()[[0, 2]]

    slice_channels(layer, {"": Kept((0, 2), (1, 3, 4))})

    np.testing.assert_array_equal(layer.weight.detach().numpy(), expected)
    np.testing.assert_array_equal(layer.bias.detach().numpy(), bias)
    assert (layer.out_features, layer.in_features) == (2, 3)
    assert layer(torch.ones(7, 3)).shape == (7, 2)


def test_a_convolution_is_sliced_in_both_directions() -> None:
    layer = nn.Conv2d(3, 4, (3, 5), stride=2, padding=1, bias=False)
    expected = layer.weight.detach().numpy()[np.ix_([1, 3], [0, 2])]

    slice_channels(layer, {"": Kept((1, 3), (0, 2))})

    np.testing.assert_array_equal(layer.weight.detach().numpy(), expected)
    assert layer(torch.ones(1, 2, 9, 9)).shape == (1, 2, 5, 4)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True)])
def test_normalisation_loses_affine_and_running_statistics_alike(norm: nn.Module) -> None:
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.dim() == 1:
            tensor.data.copy_(torch.arange(6.0) + 1)

    slice_channels(norm, {"": Kept((1, 4))})

    assert norm.num_features == 2
    vectors = [tensor for tensor in (*norm.parameters(), *norm.buffers()) if tensor.dim() == 1]
    assert len(vectors) >= 2
    assert all(tensor.tolist() == [2, 5] for tensor in vectors)


def test_a_grouped_convolution_loses_whole_groups() -> None:
    layer = nn.Conv2d(6, 9, 3, groups=3)
    x = torch.randn(1, 6, 5, 5, generator=generator("grouped"))
    expected = layer(x)[:, [0, 1, 2, 6, 7, 8]]

    slice_channels(layer, {"": Kept((0, 1, 2, 6, 7, 8), (0, 1, 4, 5))})

    assert (layer.groups, layer.in_channels, layer.out_channels) == (2, 4, 6)
    torch.testing.assert_close(layer(x[:, [0, 1, 4, 5]]), expected)


def test_group_normalisation_loses_whole_groups() -> None:
    layer = nn.GroupNorm(3, 6)
    x = torch.randn(2, 6, 4, 4, generator=generator("groupnorm"))
    expected = layer(x)[:, [0, 1, 4, 5]]

    slice_channels(layer, {"": Kept((0, 1, 4, 5))})

    torch.testing.assert_close(layer(x[:, [0, 1, 4, 5]]), expected)


@pytest.mark.parametrize(
    ("layer", "kept", "text"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), Kept((0, 2), (0, 2)), "whole groups"),
        (nn.Conv2d(4, 4, 3, groups=2), Kept((0, 1), (2, 3)), "whole groups"),
        (nn.Conv2d(4, 4, 3, groups=2), Kept((0, 1), None), "whole groups"),
        (nn.GroupNorm(2, 4), Kept((0, 1, 2)), "whole groups"),
        (nn.Linear(4, 4), Kept((1, 1)), "increasing indices below 4"),
        (nn.Linear(4, 4), Kept((2, 1)), "increasing indices below 4"),
        (nn.Linear(4, 4), Kept((0, 4)), "increasing indices below 4"),
        (nn.Linear(4, 4), Kept(None, ()), "at least one"),
        (nn.BatchNorm1d(4), Kept((0,), (1,)), "one channel dimension"),
        (nn.LayerNorm((4, 4)), Kept((0,)), "LayerNorm"),
        (nn.ConvTranspose1d(4, 4, 3, groups=2), Kept((0, 1)), "ConvTranspose1d"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), Kept((0,)), "Parametrized"),
    ],
)
def test_what_cannot_be_sliced_is_refused_by_name(layer: nn.Module, kept: Kept, text: str) -> None:
    network = nn.Sequential(layer)
    with pytest.raises(CompressionError, match=f"0: .*{text}"):
        slice_channels(network, {"0": kept})


def test_layers_with_a_dimension_for_channels_are_sliceable() -> None:
    for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.LayerNorm(3), nn.ConvTranspose2d(3, 3, 1)):
        assert is_sliceable(layer)
    for other in (nn.Sequential(), nn.LayerNorm((3, 3)), nn.LSTM(3, 3), nn.Embedding(3, 3, max_norm=1.0)):
        assert not is_sliceable(other)


def test_the_sliced_network_equals_the_masked_one() -> None:
    network, x = chain(), images()
    sliced, masked = sliced_copy(network, CHAIN_KEPT), masked_copy(network, CHAIN_KEPT)

    torch.testing.assert_close(sliced(x), masked(x))
    assert not torch.allclose(masked(x), network(x), atol=1e-3)


def test_masked_means_zero_filters_biases_affine_and_columns() -> None:
    masked = masked_copy(chain(), CHAIN_KEPT)
    first, norm, last = masked[0], masked[1], masked[8]
    gone = [1, 4, 5, 6]

    assert not first.weight[gone].any()
    assert not first.bias[gone].any()
    assert not norm.weight[gone].any()
    assert not norm.bias[gone].any()
    assert norm.running_var[gone].tolist() == [1] * 4
    assert not masked[5].weight[:, gone].any()
    assert not last.weight[:, :16].any()
    assert last.weight[:, 16:32].all()


def test_unslice_undoes_slicing_but_for_what_is_gone() -> None:
    network = chain()
    sliced, masked = sliced_copy(network, CHAIN_KEPT), masked_copy(network, CHAIN_KEPT)
    target = chain()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(7)  # what stood there must not matter

    unslice(sliced, target, CHAIN_KEPT)

    assert all(map(torch.equal, target.state_dict().values(), masked.state_dict().values()))


def test_unslice_carries_trained_statistics() -> None:
    network = chain()
    sliced = sliced_copy(network, CHAIN_KEPT).train()
    sliced(images())
    sliced.eval()

    unslice(sliced, network, CHAIN_KEPT)

    assert network[1].num_batches_tracked == 1
    torch.testing.assert_close(network(images()), sliced(images()))


def test_slicing_works_without_data() -> None:
    network = sliced_copy(chain().to("meta"), CHAIN_KEPT)

    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert network(torch.empty(1, 3, 8, 8, device="meta")).shape == (1, 5)


def test_modules_stay_the_same_objects_and_keep_their_flags() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    network = nn.Sequential(layer, nn.ReLU(), layer)

    slice_channels(network, {"0": Kept((0, 1), (0, 1))})

    assert network[0] is network[2] is layer
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    assert network(torch.ones(1, 2)).shape == (1, 2)


def test_nothing_happens_to_whole_modules() -> None:
    network = chain()
    before = copy.deepcopy(network.state_dict())

    slice_channels(network, {"0": Kept(), "1": Kept()})

    assert all(map(torch.equal, before.values(), network.state_dict().values()))
