"""Inputs and outputs of a layer at a sample of its output positions.

Places are indices into all output positions of a batch, sample by sample. Suffixes: B = samples, C = input channels,
K = kernel elements, P = places, F = filters (output features).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad
from torch.nn.modules.conv import _ConvNd

from experiment.layers.compressible import channel_dim


def draw_places(num_positions: int, most: int, generator: torch.Generator) -> Tensor:
    """At most `most` of the positions, without replacement, in increasing order: (P,), on the CPU."""
    if num_positions <= most:
        return torch.arange(num_positions)
    return torch.randperm(num_positions, generator=generator)[:most].sort().values


def num_positions(y: Tensor, layer: nn.Module) -> int:
    """The output positions of all samples of a batch."""
    return y.numel() // y.shape[channel_dim(layer)]


def counted_places(places: Tensor, y: Tensor, layer: nn.Module, attended: Tensor | None) -> Tensor:
    """Those places whose tokens are no padding; all of them where positions are not the tokens of the batch.

    Args:
        y: the layer's output: (B, N, ..., F), (B N, ..., F) or, of a one-dimensional convolution, (B, F, N).
        attended: (B, N), False for padding; see `experiment.inputs.attended`.
    """
    if attended is None:
        return places
    positions = y.movedim(channel_dim(layer), -1).shape[:-1]
    if positions[:2] != attended.shape and positions[:1].numel() != attended.numel():
        return places
    each = positions.numel() // attended.numel()  # positions of one token
    return places[attended.flatten().cpu()[places // each]]


def input_patches(x: Tensor, layer: nn.Module, y_shape: torch.Size, places: Tensor) -> Tensor:
    """The inputs from which the layer computes its outputs at these places: (C, K, P).

    Those of an embedding are zero but for a one at the token; of a transposed convolution zero where its stride leaves
    no input at a kernel element.

    Args:
        x: the layer's input: (B, C, *grid), also without B, (..., C) of a linear layer, or tokens.
        y_shape: the shape of its output.
    """
    places = places.to(x.device)
    if isinstance(layer, nn.Embedding):
        return one_hot(x.flatten()[places], layer.num_embeddings).T[:, None].to(layer.weight.dtype)
    if not isinstance(layer, _ConvNd):
        return x.reshape(-1, x.shape[-1])[places].T[:, None]
    dims = len(layer.kernel_size)
    sample, *position = _unravel(places, y_shape, dims)
    samples = x if x.dim() == dims + 2 else x[None]
    offsets = itertools.product(*map(range, layer.kernel_size))
    if layer.transposed:
        patches = [_spread_at(samples, layer, sample, position, offset) for offset in offsets]
    else:
        padded = pad(samples, _padding(layer), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
        steps = list(zip(position, layer.stride, layer.dilation, strict=True))
        patches = [
            _at(padded, sample, [at * s + u * d for (at, s, d), u in zip(steps, offset, strict=True)])
            for offset in offsets
        ]
    return torch.stack(patches).permute(2, 0, 1)


def outputs_at(y: Tensor, layer: nn.Module, places: Tensor) -> Tensor:
    """The layer's outputs at these places: (F, P)."""
    places = places.to(y.device)
    dims = -1 - channel_dim(layer)
    if not dims:
        return y.reshape(-1, y.shape[-1])[places].T
    sample, *position = _unravel(places, y.shape, dims)
    return _at(y if y.dim() == dims + 2 else y[None], sample, position).T


def all_outputs(y: Tensor, layer: nn.Module) -> Tensor:
    """The layer's outputs at all places, in order: (F, P)."""
    return y.movedim(channel_dim(layer), 0).flatten(1) if y.dim() > 1 else y[:, None]


def _unravel(places: Tensor, y_shape: torch.Size, dims: int) -> tuple[Tensor, ...]:
    """The index of the sample and along every axis."""
    samples = y_shape[: -1 - dims].numel()
    return torch.unravel_index(places, (samples, *y_shape[-dims:]))


def _at(x: Tensor, sample: Tensor, position: Sequence[Tensor]) -> Tensor:
    """All channels at these places: (P, C)."""
    index: tuple[Any, ...] = (sample, slice(None), *position)
    return x[index]


def _spread_at(x: Tensor, layer: _ConvNd, sample: Tensor, position: Sequence[Tensor], offset: Sequence[int]) -> Tensor:
    """The inputs that a transposed convolution multiplies by one kernel element at these outputs: (P, C)."""
    index, exists = list[Tensor](), torch.ones_like(sample, dtype=torch.bool)
    for axis, (at, u) in enumerate(zip(position, offset, strict=True)):
        reached = at + int(layer.padding[axis]) - u * layer.dilation[axis]
        source = reached.div(layer.stride[axis], rounding_mode="floor")
        exists &= (reached % layer.stride[axis] == 0) & (source >= 0) & (source < x.shape[2 + axis])
        index.append(source.clamp(0, x.shape[2 + axis] - 1))
    return _at(x, sample, index) * exists[:, None]


def _padding(layer: _ConvNd) -> list[int]:
    """As `torch.nn.functional.pad` takes it: left, right, top, bottom, front, back."""
    pairs = []
    for axis in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            pairs += [total // 2, total - total // 2]
        else:
            size = 0 if isinstance(layer.padding, str) else int(layer.padding[axis])
            pairs += [size, size]
    return pairs
