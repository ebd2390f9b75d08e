"""Layers in a stream: what a layer makes is put in its places among more channels, and it takes some of them only.

The tensors of a stream, such as a residual one, have all channels that any of the layers that are added to it makes.
Both are hooks of the layer itself, so that it keeps its name and its class, and observers of the layer see its own
channels alone.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiment.errors import CompressionError
from experiment.layers.channels import channel_axes
from experiment.layers.plan import Kept

PLACES, READS, CONSTANTS = "stream_places", "stream_reads", "stream_constants"  # buffers, and a parameter
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """Which dimension of a module's input or output is its channels: `dim`; None: that of `width` elements, 1 or -1."""

    width: int
    dim: int | None

    def of(self, x: Tensor) -> int:
        """The dimension, from 0."""
        if self.dim is not None:
            return self.dim % x.dim()
        return 1 if x.shape[1] == self.width and (x.dim() == 4 or x.shape[-1] != self.width) else x.dim() - 1


@dataclass(frozen=True)
class PutInPlaces:
    """A forward hook: the module's channels at their places in the stream; zeros, or constants, elsewhere."""

    axis: Axis

    def __call__(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        """The tensor of the stream's width. A place is an index into the channels and, behind them, the others."""
        constants: Tensor | None = getattr(module, CONSTANTS, None)
        dim = self.axis.of(output)
        if constants is None:
            wide = functional.pad(output, [0, 0] * (output.dim() - 1 - dim) + [0, 1])
        else:
            shape, single = list(output.shape), [1] * output.dim()
            shape[dim] = single[dim] = constants.shape[0]
            wide = torch.cat([output, constants.to(output.dtype).view(single).expand(shape)], dim)
        return wide.index_select(dim, _indices(module, PLACES, output))


@dataclass(frozen=True)
class Take:
    """A forward pre-hook: the channels of a stream that the module reads."""

    axis: Axis

    def __call__(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments, with the first one narrowed."""
        name = next(iter(named), "")
        x = args[0] if args else named[name]
        part = x.index_select(self.axis.of(x), _indices(module, READS, x))
        return ((part, *args[1:]), named) if args else (args, {**named, name: part})


def join_streams(network: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Make sliced modules, in place, put channels in their places and take those that they read, as `kept` says.

    The constants are the modules' present biases.

    Raises: CompressionError: the tensor of a stream lacks channels of the module, or it has no bias for constants.
    """
    modules = dict(network.named_modules())
    for name, sides in kept.items():
        if sides.made is None and sides.taken is None:
            continue
        if (module := modules.get(name)) is None:
            raise CompressionError(f"{name}: a bare parameter cannot put channels in their places.")
        dim = _dim(module)
        if sides.made is not None:
            own = _within(name, module, sides.out, sides.made, 0)
            others = [place for place in range(len(sides.made)) if place not in set(own)]
            if sides.constants:
                _add_constants(name, module, [sides.made[place] for place in others])
            order = [0] * len(sides.made)
            for i, place in enumerate([*own, *others]):
                order[place] = i if sides.constants else min(i, len(own))
            _set_indices(module, PLACES, order)
            module.register_forward_hook(PutInPlaces(Axis(len(own), dim)))
        if sides.taken is not None:
            read = _within(name, module, sides.out if sides.inputs is None else sides.inputs, sides.taken, 1)
            _set_indices(module, READS, read)
            module.register_forward_pre_hook(Take(Axis(len(sides.taken), dim)), with_kwargs=True)


def move_streams(layer: nn.Module, replacement: nn.Module) -> None:
    """Make what replaces a layer join the same streams, and call the same hooks, in place."""
    for own in (PLACES, READS):
        if own in layer._buffers:
            replacement.register_buffer(own, layer.get_buffer(own), persistent=False)
    if CONSTANTS in layer._parameters:
        replacement.register_parameter(CONSTANTS, layer.get_parameter(CONSTANTS))
    for kind in _HOOKS:
        setattr(replacement, kind, copy.copy(getattr(layer, kind)))


def constants_of(network: nn.Module, kept: Mapping[str, Kept]) -> Iterator[tuple[str, list[int], Tensor]]:
    """The layers with constants: name, the channels in their places in the whole layer, the constants."""
    for name, sides in kept.items():
        if sides.num_constants:
            others = sorted(set(sides.made or ()) - set(sides.out or ()))
            yield name, others, network.get_submodule(name).get_parameter(CONSTANTS)


def _add_constants(name: str, module: nn.Module, channels: Sequence[int]) -> None:
    """Keep what the removed `channels` of a module, which is about to be sliced, have as a bias."""
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor):
        raise CompressionError(f"{name}: its removed channels cannot be constants, since it has no bias.")
    with torch.no_grad():
        values = bias.detach()[torch.tensor(channels, device=bias.device)]
    module.register_parameter(CONSTANTS, nn.Parameter(values, requires_grad=bias.requires_grad))


def _within(name: str, module: nn.Module, own: Sequence[int] | None, stream: Sequence[int], side: int) -> list[int]:
    """The places of a module's channels among those of the stream."""
    places = {channel: place for place, channel in enumerate(stream)}
    if own is None or not places.keys() > set(own) or max(places) >= channel_axes.channel_counts(module)[side]:
        raise CompressionError(f"{name}: the channels of its stream must be its own, those that stay and more.")
    return [places[channel] for channel in own]


def _set_indices(module: nn.Module, name: str, indices: Sequence[int]) -> None:
    """Hold indices with the module: not in the state_dict, but real even while the weights are on `meta`."""
    device = next((p.device for p in module.parameters() if not p.is_meta), torch.device("cpu"))
    module.register_buffer(name, torch.tensor(indices, device=device), persistent=False)


def _indices(module: nn.Module, name: str, x: Tensor) -> Tensor:
    indices = module.get_buffer(name)
    return indices if indices.device == x.device else indices.to(x.device)


def _dim(module: nn.Module) -> int | None:
    """The dimension of channels; None where it depends on the input."""
    if (
        isinstance(module, (*channel_axes.CHANNEL_MAKERS, *channel_axes.PLAIN_NORMS, nn.GroupNorm, nn.PReLU))
        or type(module) in channel_axes.LAYER_NORMS
    ):
        return channel_axes.channel_dim(module, torch.empty(0))
    return None
