"""Inputs and outputs of a layer at a sample of its output positions.

Places are indices into all output positions of a batch, sample by sample. Suffixes: B = samples, C = input channels,
K = kernel elements, P = places, F = filters (output features).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


def draw_places(num_positions: int, most: int, generator: torch.Generator) -> Tensor:
    """At most `most` of the positions, without replacement, in increasing order: (P,), on the CPU."""
    if num_positions <= most:
        return torch.arange(num_positions)
    return torch.randperm(num_positions, generator=generator)[:most].sort().values


def num_positions(y: Tensor, layer: nn.Module) -> int:
    """The output positions of all samples of a batch."""
    return y.numel() // y.shape[-3 if isinstance(layer, nn.Conv2d) else -1]


def input_patches(x: Tensor, layer: nn.Module, y_shape: torch.Size, places: Tensor) -> Tensor:
    """The inputs from which the layer computes its outputs at these places: (C, K, P).

    Args:
        x: the layer's input: (B, C, height, width), also without B, or (..., C) of a linear layer.
        y_shape: the shape of its output.
    """
    places = places.to(x.device)
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])[places].T[:, None]
    sample, row, column = _unravel(places, y_shape)
    samples = x if x.dim() == 4 else x[None]
    padded = pad(samples, _padding(layer), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    (height, width), (down, right), (high, wide) = layer.stride, layer.dilation, layer.kernel_size
    patches = [
        padded[sample, :, row * height + u * down, column * width + v * right] for u in range(high) for v in range(wide)
    ]
    return torch.stack(patches).permute(2, 0, 1)


def outputs_at(y: Tensor, layer: nn.Module, places: Tensor) -> Tensor:
    """The layer's outputs at these places: (F, P)."""
    places = places.to(y.device)
    if not isinstance(layer, nn.Conv2d):
        return y.reshape(-1, y.shape[-1])[places].T
    sample, row, column = _unravel(places, y.shape)
    return (y if y.dim() == 4 else y[None])[sample, :, row, column].T


def all_outputs(y: Tensor, layer: nn.Module) -> Tensor:
    """The layer's outputs at all places, in order: (F, P)."""
    return y.movedim(-3 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1) if y.dim() > 1 else y[:, None]


def _unravel(places: Tensor, y_shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    height, width = y_shape[-2:]
    return places // (height * width), places // width % height, places % width


def _padding(layer: nn.Conv2d) -> list[int]:
    """As `torch.nn.functional.pad` takes it: left, right, top, bottom."""
    pairs = []
    for axis in (1, 0):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            pairs += [total // 2, total - total // 2]
        else:
            size = 0 if isinstance(layer.padding, str) else int(layer.padding[axis])
            pairs += [size, size]
    return pairs
