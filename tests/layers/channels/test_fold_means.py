"""Folding what removed channels emitted on average: exact for constants, nearer with padding, by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.fold_constants import Folded, fold_means
from experiment.layers.channels.group_data import ChannelGroup, kept_of
from experiment.layers.channels.slicing import slice_channels
from experiment.layers.plan import Kept
from experiment.random_streams import generator, seeded


def images(number: int = 40) -> Tensor:
    return torch.randn(number, 3, 8, 8, generator=generator("test_fold_means"))


def network(padding: int, norm: bool) -> nn.Sequential:
    with seeded("test_fold_means"):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=padding), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=padding), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
        ).eval()  # fmt: skip


def cut(net: nn.Module, gone: int) -> tuple[list[ChannelGroup], dict[str, Kept], nn.Module]:
    """Without the first channels of the first layer."""
    groups = channel_groups(net, images(1))
    chosen = [range(group.size) for group in groups]
    kept = kept_of(groups, [range(gone, groups[0].size), *chosen[1:]])
    sliced = copy.deepcopy(net)
    slice_channels(sliced, kept)
    return groups, kept, sliced


@pytest.mark.parametrize("norm", [True, False])
def test_constant_channels_without_padding_are_replaced_exactly(norm: bool) -> None:
    net, x = network(0, norm), images()
    with torch.no_grad():
        net[0].weight[:3] = 0
        net[0].bias[:3] = 2.0
        net[1].bias[:3] = torch.tensor([0.5, 1.0, 3.0])
    groups, kept, sliced = cut(net, 3)
    assert not torch.allclose(sliced(x), net(x), atol=1e-2)

    fold_means(sliced, net, x[:4], groups, kept)

    torch.testing.assert_close(sliced(x), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
def test_channels_that_vary_and_padding_are_replaced_on_average(norm: bool) -> None:
    net, x = network(1, norm), images()
    groups, kept, sliced = cut(net, 4)
    before = (sliced(x) - net(x)).norm()

    folded = fold_means(sliced, net, x, groups, kept)

    assert (sliced(x) - net(x)).norm() < 0.5 * before
    reader, dense = sliced[:5] if norm else sliced[:4], net[:5] if norm else net[:4]
    torch.testing.assert_close(reader(x).mean((0, 2, 3)), dense(x).mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    assert folded.keys() == {"3"}
    assert folded["3"].place is (sliced[4].running_mean if norm else sliced[3].bias)
    assert folded["3"].sign == (-1 if norm else 1)


def test_batches_and_positions_weigh_alike() -> None:
    """Sequences of two lengths and a reader used for both: 3 * mean of the removed channel over all tokens."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 2, bias=False), nn.Linear(2, 1)
            with torch.no_grad():
                self.a.weight.copy_(torch.tensor([[1.0], [1.0]]))
                self.b.weight.copy_(torch.tensor([[5.0, 3.0]]))
                self.b.bias.zero_()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x)).sum(1) + self.b(self.a(x[:, :1])).sum(1)
            return y

    net, x = Two(), torch.arange(35 * 3.0).reshape(35, 3, 1)  # more samples than pass at once
    groups = channel_groups(net, x[:1])
    kept = kept_of(groups, [(0,), *[range(group.size) for group in groups[1:]]])
    sliced = copy.deepcopy(net)
    slice_channels(sliced, kept)

    folded = fold_means(sliced, net, x, groups, kept)

    tokens = torch.cat([x.flatten(), x[:, 0].flatten()])
    torch.testing.assert_close(sliced.b.bias, 3 * tokens.mean()[None])
    assert folded["b"].behind.tolist() == [0]


def test_the_network_that_was_compressed_is_untouched() -> None:
    net = network(1, True)
    groups, kept, sliced = cut(net, 2)
    before = copy.deepcopy(net.state_dict())
    assert isinstance(fold_means(sliced, net, images(), groups, kept)["3"], Folded)
    assert all(map(torch.equal, before.values(), net.state_dict().values()))
    assert not any(module._forward_hooks for module in net.modules())
