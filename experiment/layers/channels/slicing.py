"""Removes channels from a network's layers, restores them as zeros, and masks instead of removing.

Masked means: the filter, bias and normalisation of a removed channel are zero (running mean 0, variance 1), and so are
the columns that would read it; LayerNorm and the like normalise over the channels that are left. The sliced network
computes what the masked one does, whatever the activation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.channels import channel_axes
from experiment.layers.channels.masked_norms import normalise_over, normalise_over_all
from experiment.layers.channels.module_numbers import set_numbers
from experiment.layers.channels.streams import constants_of, join_streams
from experiment.layers.plan import Kept

Indices = tuple[int, ...] | None
Cuts = tuple[tuple[int, tuple[int, ...]], ...]
"""Dimensions of a tensor and the indices to keep there."""


def slice_channels(network: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Shrink the weights, biases and buffers of every named module, in place, to the channels to keep.

    Works on every device, `meta` included. The module objects stay, so hooks and shared modules survive, and parameters
    that modules share stay shared.

    Args:
        kept: module name -> indices that stay, and the module's own numbers that change. A layer with channel groups
            (grouped convolution, GroupNorm) loses whole groups only; a module with one channel dimension (BatchNorm,
            PReLU) uses `out`, and so does a bare parameter, under its own name. `made` and `taken` join it to streams.
    Raises: CompressionError: a module cannot be sliced, or not to these channels.
    """
    shared: dict[tuple[int, Cuts], Tensor] = {}
    selections = list(_selections(network, kept))
    join_streams(network, kept)
    with torch.no_grad():
        for selection in selections:
            for name, tensor in selection.tensors.items():
                key = (id(tensor), selection.cuts(tensor))
                if not key[1]:
                    continue
                if key not in shared:
                    part = _part(tensor, key[1])
                    is_parameter = isinstance(tensor, nn.Parameter)
                    shared[key] = nn.Parameter(part, requires_grad=tensor.requires_grad) if is_parameter else part
                setattr(selection.module, name, shared[key])
            selection.resize()
    set_numbers(network, {name: sides.numbers for name, sides in kept.items() if sides.numbers})


def unslice(compressed: nn.Module, network: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Write a network without these channels into `network`, which has the original shapes, in place; zero elsewhere.

    Raises: CompressionError: a module cannot be sliced, or not to these channels.
    """
    cuts = {
        (id(selection.module), name): selection.cuts(tensor)
        for selection in _selections(network, kept)
        for name, tensor in selection.tensors.items()
    }
    with torch.no_grad():
        for name, module in network.named_modules():
            source = _state(compressed.get_submodule(name))
            for own, tensor in _state(module).items():
                if (id(module), own) in cuts:
                    _embed(source[own], tensor, cuts[id(module), own], _fill_value(own))
                else:
                    tensor.copy_(source[own])
        for name, channels, constants in constants_of(compressed, kept):
            network.get_submodule(name).get_parameter("bias")[channels] = constants
    _normalise_over_kept(network, kept)


def mask_channels(network: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Set the removed channels of a network to zero, in place, instead of slicing it.

    Raises: CompressionError: a module cannot be sliced, or not to these channels.
    """
    with torch.no_grad():
        for selection in _selections(network, kept):
            for name, tensor in selection.tensors.items():
                _clear(tensor, selection.cuts(tensor), _fill_value(name))
    _normalise_over_kept(network, kept)


def _normalise_over_kept(network: nn.Module, kept: Mapping[str, Kept]) -> None:
    for selection in _selections(network, kept):
        if selection.rows is not None and not selection.bare and channel_axes.normalises_channels(selection.module):
            normalise_over(selection.module, selection.rows)


def _selections(network: nn.Module, kept: Mapping[str, Kept]) -> Iterator[_Selection]:
    """What stays of every module and bare parameter, leaving out those of which only numbers change."""
    modules = dict(network.named_modules())
    for name, sides in kept.items():
        owner, _, own = name.rpartition(".")
        if name not in modules and own in dict(modules[owner].named_parameters(recurse=False)):
            yield _Selection(name, modules[owner], sides, own)
        elif sides.out is not None or sides.inputs is not None:
            yield _Selection(name, _module(network, name), sides)


class _Selection:
    """The rows (output channels) and columns (input channels) of one module's tensors to keep; None: all.

    Args:
        own: for a bare parameter, its name in its module.
    """

    def __init__(self, name: str, module: nn.Module, kept: Kept, own: str | None = None) -> None:
        self.name, self.module, self.bare = name, module, own is not None
        self.rows, self.columns, self.groups = kept.out, kept.inputs, 1
        if own is not None:
            parameter = module.get_parameter(own)
            self.tensors: dict[str, Tensor] = {own: parameter}
            dim = channel_axes.parameter_dim(parameter.shape)
            self._check(self.rows, 1 if dim is None else parameter.shape[dim], "output")
            return
        self.tensors = channel_axes.tensors_of(module)
        outputs, inputs = channel_axes.channel_counts(module)
        if isinstance(module, channel_axes.CONVOLUTIONS):
            self.groups = module.groups
        elif not isinstance(module, (nn.Linear, nn.Embedding, *channel_axes.TRANSPOSED)):
            self.groups = module.num_groups if isinstance(module, nn.GroupNorm) else 1
            self.rows, self.columns = _same(name, kept), None
        self._check(self.rows, outputs, "output")
        self._check(self.columns, inputs, "input")
        if self.groups > 1:
            self._whole_groups(outputs, inputs)

    def _check(self, indices: Indices, size: int, side: str) -> None:
        if indices is None:
            return
        if not indices or indices[0] < 0 or indices[-1] >= size or not _rises(indices):
            raise CompressionError(
                f"{self.name}: the {side} channels that stay must be increasing indices below {size}, at least one. "
                f"Got {_shortened(indices)}."
            )

    def _whole_groups(self, outputs: int, inputs: int) -> None:
        """Count the groups that stay; only rows are selected, since a group's columns are its own."""
        stay = _groups_of(self.rows, outputs, self.groups)
        if isinstance(self.module, channel_axes.CONVOLUTIONS) and stay != _groups_of(self.columns, inputs, self.groups):
            stay = None
        if stay is None:
            raise CompressionError(
                f"{self.name}: a layer of {self.groups} channel groups can only lose whole groups, the same ones on "
                f"both sides. Got outputs {_shortened(self.rows)} and inputs {_shortened(self.columns)}."
            )
        self.groups, self.columns = len(stay), None

    def cuts(self, tensor: Tensor) -> Cuts:
        """The dimensions of one of the tensors that lose channels."""
        axes = (
            (channel_axes.parameter_dim(tensor.shape), None) if self.bare else channel_axes.axes_of(self.module, tensor)
        )
        pairs = zip(axes, (self.rows, self.columns), strict=True)
        return tuple((dim, indices) for dim, indices in pairs if dim is not None and indices is not None)

    def resize(self) -> None:
        """Update the module's own numbers."""
        module = self.module
        if self.bare:
            return
        if isinstance(module, channel_axes.CONVOLUTIONS):
            module.out_channels = module.weight.shape[0]
            module.groups = self.groups
            module.in_channels = module.weight.shape[1] * self.groups
        elif isinstance(module, channel_axes.TRANSPOSED):
            module.in_channels, module.out_channels = module.weight.shape[:2]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = module.weight.shape[1]
        elif self.rows is not None:
            normalise_over_all(module)
            if isinstance(module, nn.GroupNorm):
                module.num_channels, module.num_groups = len(self.rows), self.groups
            elif isinstance(module, nn.PReLU):
                module.num_parameters = module.weight.numel()
            elif isinstance(module, channel_axes.LAYER_NORMS):
                module.normalized_shape = (len(self.rows),)
            elif isinstance(module, channel_axes.PLAIN_NORMS):
                module.num_features = len(self.rows)


def _part(tensor: Tensor, cuts: Cuts) -> Tensor:
    """The remaining part of a weight, bias or buffer."""
    for dim, indices in cuts:
        tensor = tensor.index_select(dim, torch.tensor(indices, device=tensor.device))
    return tensor


def _clear(tensor: Tensor, cuts: Cuts, value: float) -> None:
    """Set the removed part to `value`."""
    for dim, indices in cuts:
        gone = sorted(set(range(tensor.shape[dim])) - set(indices))
        tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.long, device=tensor.device), value)


def _embed(part: Tensor, tensor: Tensor, cuts: Cuts, value: float) -> None:
    """Write `part` to its places in `tensor` and `value` elsewhere."""
    stay = dict(cuts)
    ways = [torch.tensor(stay.get(dim, range(size)), device=tensor.device) for dim, size in enumerate(tensor.shape)]
    tensor.fill_(value)
    tensor[torch.meshgrid(*ways, indexing="ij")] = part


def _module(network: nn.Module, name: str) -> nn.Module:
    module = network.get_submodule(name)
    if not channel_axes.is_sliceable(module):
        raise CompressionError(
            f"{name}: channels cannot be removed from a {type(module).__name__}. Expected a plain convolution, linear, "
            f"embedding, normalisation or PReLU layer."
        )
    return module


def _state(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, without those of its children."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _same(name: str, kept: Kept) -> Indices:
    if kept.out is not None and kept.inputs is not None and kept.out != kept.inputs:
        raise CompressionError(f"{name}: it has one channel dimension. Got different channels for its two sides.")
    return kept.out if kept.out is not None else kept.inputs


def _groups_of(indices: Indices, size: int, groups: int) -> list[int] | None:
    """The groups that `indices` consist of; None if one of them is incomplete."""
    if indices is None:
        return list(range(groups))
    width = size // groups
    stay = sorted({i // width for i in indices})
    return stay if len(indices) == len(stay) * width else None


def _rises(indices: tuple[int, ...]) -> bool:
    return all(a < b for a, b in itertools.pairwise(indices))


def _fill_value(tensor_name: str) -> float:
    return 1.0 if tensor_name == "running_var" else 0.0


def _shortened(indices: Indices) -> str:
    if indices is None:
        return "all"
    return str(list(indices)) if len(indices) <= 8 else f"[{', '.join(map(str, indices[:8]))}, ...]"
