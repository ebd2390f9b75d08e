"""Folding what removed channels would still emit: against the network in which only their filters are zero."""

import copy

import pytest
import torch
from torch import Tensor, nn

from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.fold_constants import fold_constants
from experiment.layers.channels.group_data import ChannelGroup, kept_of
from experiment.layers.channels.slicing import slice_channels
from experiment.layers.plan import Kept
from experiment.random_streams import generator, seeded


def network(padding: int, bias: bool, norm: bool, depthwise: bool = False) -> nn.Sequential:
    """Blocks of convolution, BatchNorm, ReLU whose channels, like trained ones, are far from zero without a filter."""
    layers: list[nn.Module] = []
    for inputs, outputs, groups in ((3, 8, 1), (8, 8, 8 if depthwise else 1), (8, 6, 1)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=padding, groups=groups, bias=bias))
        layers.extend([nn.BatchNorm2d(outputs)] if norm else [])
        layers.append(nn.ReLU())
    with seeded("test_ghosts"):
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5))
        for module in net.modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if not isinstance(module, nn.Conv2d) and tensor.dim() == 1:
                    nn.init.uniform_(tensor, 0.5, 1.5)
                elif isinstance(module, nn.Conv2d) and tensor.dim() == 1:
                    nn.init.uniform_(tensor, -0.3, 0.7)
                elif isinstance(module, nn.Conv2d):
                    nn.init.normal_(tensor, 0.05, 0.2)
    return net.eval()


def images() -> Tensor:
    return torch.randn(8, 3, 10, 10, generator=generator("test_ghosts"))


def halved(net: nn.Module) -> tuple[list[ChannelGroup], dict[str, Kept], nn.Module, nn.Module]:
    """Every group's first half: the groups, what is kept, the sliced network, and the one with only filters zeroed."""
    groups = channel_groups(net, images()[:1])
    chosen = [range(group.size if group.exempt else group.size // 2) for group in groups]
    kept = kept_of(groups, chosen)
    sliced, ghost = copy.deepcopy(net), copy.deepcopy(net)
    slice_channels(sliced, kept)
    with torch.no_grad():
        for group in groups:
            for name in group.producers if group.exempt is None else ():
                ghost.get_submodule(name).weight[group.size // 2 :] = 0
    return groups, kept, sliced, ghost


@pytest.mark.parametrize(("bias", "norm"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_without_padding_the_output_is_that_of_zeroed_filters(bias: bool, norm: bool, depthwise: bool) -> None:
    net, x = network(0, bias, norm, depthwise), images()
    groups, kept, sliced, ghost = halved(net)
    assert not torch.allclose(sliced(x), ghost(x), atol=1e-2)

    fold_constants(sliced, net, x[:1], groups, kept)

    torch.testing.assert_close(sliced(x), ghost(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("bias", "norm"), [(True, True), (False, True), (True, False)])
def test_with_padding_folding_brings_the_output_nearer(bias: bool, norm: bool) -> None:
    net, x = network(1, bias, norm), images()
    groups, kept, sliced, ghost = halved(net)
    before = (sliced(x) - ghost(x)).norm()

    fold_constants(sliced, net, x[:1], groups, kept)

    assert (sliced(x) - ghost(x)).norm() < 0.5 * before


def test_it_goes_to_the_running_mean_where_batch_norm_alone_reads_the_layer_and_else_to_the_bias() -> None:
    net = network(0, bias=True, norm=True)
    groups, kept, sliced, _ = halved(net)
    before = copy.deepcopy(sliced.state_dict())

    fold_constants(sliced, net, images()[:1], groups, kept)

    changed = {name for name, tensor in sliced.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"4.running_mean", "7.running_mean", "11.bias"}


def test_by_hand() -> None:
    """Channel 1 emits relu(2) = 2 without its filter; its reader weighs that with 3 and -1."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([0.0, 2.0]))
        net[2].weight.copy_(torch.tensor([[1.0, 3.0], [1.0, -1.0]]))
        net[2].bias.copy_(torch.tensor([10.0, 20.0]))
    groups = channel_groups(net, torch.ones(1, 1))
    kept = kept_of(groups, [(0,), (0, 1)])
    sliced = copy.deepcopy(net)
    slice_channels(sliced, kept)

    fold_constants(sliced, net, torch.ones(1, 1), groups, kept)

    assert sliced[2].bias.tolist() == [16, 18]


def test_what_has_no_place_to_go_is_left_out() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    groups = channel_groups(net, torch.ones(1, 3))
    kept = kept_of(groups, [(0, 1), (0, 1)])
    sliced = copy.deepcopy(net)
    slice_channels(sliced, kept)
    before = copy.deepcopy(sliced.state_dict())

    fold_constants(sliced, net, torch.ones(1, 3), groups, kept)

    assert all(map(torch.equal, before.values(), sliced.state_dict().values()))
