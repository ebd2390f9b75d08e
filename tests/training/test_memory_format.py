"""The layout of weights and of the inputs of layers."""

import torch
from torch import Tensor, nn

from experiment.training.memory_format import memory_format


def layouts(network: nn.Module, x: Tensor) -> list[tuple[bool, bool]]:
    """Whether (weight, input) of every convolution are channels-last."""
    seen: list[tuple[bool, bool]] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        strides = (layer.weight.stride(), inputs[0].stride())  # `is_contiguous` is true of both layouts for 1x1 kernels
        seen.append((strides[0][3] > 1, strides[1][1] == 1))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(look)
    network(x.to(memory_format=torch.channels_last))
    return seen


def test_strided_1x1_convolutions_of_few_channels_are_contiguous() -> None:
    """Otherwise oneDNN's weight gradient of the second layer overruns its memory, which may end pytest: no backward."""
    network = nn.Sequential(
        nn.Conv2d(3, 15, 3), nn.Conv2d(15, 16, 1, stride=2), nn.Conv2d(16, 16, 1, stride=2), nn.Conv2d(16, 4, 1)
    )
    network[1].weight.data = network[1].weight.data.to(memory_format=torch.channels_last)
    with memory_format(network, True):
        assert layouts(network, torch.randn(2, 3, 14, 14)) == [
            (True, True),
            (False, False),
            (True, False),
            (True, True),
        ]
    assert len(network[1]._forward_pre_hooks) == 0
    assert all(layer.weight.is_contiguous() for layer in network)


def test_also_where_the_images_alone_are_channels_last() -> None:
    layer = nn.Conv2d(3, 4, 1, stride=2)
    with memory_format(layer, False):
        assert layouts(layer, torch.randn(2, 3, 8, 8)) == [(False, False)]
