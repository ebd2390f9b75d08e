"""The order of values in memory during training and evaluation."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 16  # channels that oneDNN computes at once with AVX-512; 8 with AVX2


@contextmanager
def memory_format(network: nn.Module, channels_last: bool) -> Iterator[None]:
    """Convert the weights to channels-last inside, and back outside unless they were channels-last before.

    Layers for which this layout is unsafe compute in the contiguous one, whatever the layout of their inputs.
    """
    turn = channels_last and not all(
        p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.dim() == 4
    )
    if turn:
        _lay_out(network, torch.channels_last)
    try:
        with ExitStack() as stack:
            for layer in filter(_is_unsafe, network.modules()):
                _lay_out(layer, torch.contiguous_format)
                stack.callback(layer.register_forward_pre_hook(_contiguous).remove)
            yield
    finally:
        if turn:
            _lay_out(network, torch.contiguous_format)


def _is_unsafe(layer: nn.Module) -> bool:
    """Whether oneDNN's weight gradient of this layer, on a CPU, writes past the end of its memory in channels-last.

    It does for 1x1 convolutions with a stride and fewer input channels than a block has: the process crashes, hangs or
    learns from a wrong gradient. Pruned shortcuts of ResNets are such layers.
    Source: https://github.com/uxlfoundation/oneDNN/issues/6035; in oneDNN 3.12 and torch 2.14.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and layer.weight.device.type == "cpu"
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < _BLOCK
    )


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def _lay_out(network: nn.Module, order: torch.memory_format) -> None:
    """Only weights with four dimensions: torch has no such format for those of Conv3d."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=order)  # `contiguous` ignores the strides of a single channel
