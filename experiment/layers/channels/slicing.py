"""Removes channels from a network's layers, restores them as zeros, and masks instead of removing.

Masked means: the filter, bias and normalisation of a removed channel are zero (running mean 0, variance 1), and so are
the columns that would read it. The sliced network computes what the masked one does, whatever the activation.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiment.errors import CompressionError
from experiment.layers.plan import Kept

Indices = tuple[int, ...] | None

_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
_TENSORS = frozenset({"weight", "bias", "running_mean", "running_var"})


def is_sliceable(module: nn.Module) -> bool:
    """Whether channels can be removed from a module: a plain convolution, linear, normalisation or PReLU layer.

    LayerNorm is none: its statistics are taken over the channels, so removing one changes the others.
    """
    known = isinstance(module, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.PReLU, *_NORMS))
    own = {n for n, _ in module.named_parameters()} <= _TENSORS  # a subclass or parametrization may hold more
    return known and own and not parametrize.is_parametrized(module)


def channel_counts(module: nn.Module) -> tuple[int, int]:
    """How many output and input channels a sliceable module has; equal if it has one channel dimension."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels, module.num_channels
    if isinstance(module, nn.PReLU):
        return module.num_parameters, module.num_parameters
    assert isinstance(module, _NORMS), type(module)
    return module.num_features, module.num_features


def slice_channels(network: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Shrink the weights, biases and buffers of every named module, in place, to the channels to keep.

    Works on every device, `meta` included. The module objects stay, so hooks and shared modules survive.

    Args:
        kept: module name -> indices that stay. A layer with channel groups (grouped convolution, GroupNorm) loses whole
            groups only; a module with one channel dimension (BatchNorm, PReLU) uses `out`.
    Raises: CompressionError: a module cannot be sliced, or not to these channels.
    """
    for name, sides in kept.items():
        module = _module(network, name)
        selection = _Selection(name, module, sides)
        with torch.no_grad():
            for tensor_name, tensor in _tensors(module).items():
                sliced = selection.of(tensor)
                if isinstance(tensor, nn.Parameter):
                    sliced = nn.Parameter(sliced, requires_grad=tensor.requires_grad)
                setattr(module, tensor_name, sliced)
        selection.resize()


def unslice(compressed: nn.Module, network: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Write the sliced modules into `network`, which has the original shapes, in place; zero elsewhere.

    Raises: CompressionError: a module cannot be sliced, or not to these channels.
    """
    for name, sides in kept.items():
        module = _module(network, name)
        selection, source = _Selection(name, module, sides), _state(compressed.get_submodule(name))
        with torch.no_grad():
            for tensor_name, tensor in _state(module).items():
                if tensor_name in _TENSORS:
                    selection.embed(source[tensor_name], tensor, _fill_value(tensor_name))
                else:  # num_batches_tracked
                    tensor.copy_(source[tensor_name])


def mask_channels(network: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Set the removed channels of a network to zero, in place, instead of slicing it.

    Raises: CompressionError: a module cannot be sliced, or not to these channels.
    """
    for name, sides in kept.items():
        module = _module(network, name)
        selection = _Selection(name, module, sides)
        with torch.no_grad():
            for tensor_name, tensor in _tensors(module).items():
                selection.clear(tensor, _fill_value(tensor_name))


class _Selection:
    """The rows (output channels) and columns (input channels) of one module's tensors to keep; None: all."""

    def __init__(self, name: str, module: nn.Module, kept: Kept) -> None:
        self.name, self.module = name, module
        self.rows, self.columns, self.groups = kept.out, kept.inputs, 1
        outputs, inputs = channel_counts(module)
        if isinstance(module, nn.Conv2d):
            self.groups = module.groups
        elif not isinstance(module, nn.Linear):
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
        if isinstance(self.module, nn.Conv2d) and stay != _groups_of(self.columns, inputs, self.groups):
            stay = None
        if stay is None:
            raise CompressionError(
                f"{self.name}: a layer of {self.groups} channel groups can only lose whole groups, the same ones on "
                f"both sides. Got outputs {_shortened(self.rows)} and inputs {_shortened(self.columns)}."
            )
        self.groups, self.columns = len(stay), None

    def of(self, tensor: Tensor) -> Tensor:
        """The remaining part of a weight, bias or buffer."""
        for dim, indices in ((0, self.rows), (1, self.columns)):
            if indices is not None and tensor.dim() > dim:
                tensor = tensor.index_select(dim, torch.tensor(indices, device=tensor.device))
        return tensor

    def clear(self, tensor: Tensor, value: float) -> None:
        """Set the removed part to `value`."""
        for dim, indices in ((0, self.rows), (1, self.columns)):
            if indices is not None and tensor.dim() > dim:
                gone = sorted(set(range(tensor.shape[dim])) - set(indices))
                tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.long, device=tensor.device), value)

    def embed(self, part: Tensor, tensor: Tensor, value: float) -> None:
        """Write `part` to its places in `tensor` and `value` elsewhere."""
        ways = [
            torch.arange(size, device=tensor.device) if indices is None else torch.tensor(indices, device=tensor.device)
            for indices, size in zip((self.rows, self.columns), tensor.shape, strict=False)
        ]
        tensor.fill_(value)
        tensor[torch.meshgrid(*ways, indexing="ij")] = part

    def resize(self) -> None:
        """Update the module's own numbers."""
        module = self.module
        if isinstance(module, nn.Conv2d):
            module.out_channels = module.weight.shape[0]
            module.groups = self.groups
            module.in_channels = module.weight.shape[1] * self.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif self.rows is not None:
            if isinstance(module, nn.GroupNorm):
                module.num_channels, module.num_groups = len(self.rows), self.groups
            elif isinstance(module, nn.PReLU):
                module.num_parameters = module.weight.numel()
            elif isinstance(module, _NORMS):
                module.num_features = len(self.rows)


def _module(network: nn.Module, name: str) -> nn.Module:
    module = network.get_submodule(name)
    if not is_sliceable(module):
        raise CompressionError(
            f"{name}: channels cannot be removed from a {type(module).__name__}. Expected a plain convolution, linear, "
            f"batch, instance or group normalisation, or PReLU layer."
        )
    return module


def _state(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, without those of its children."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in _state(module).items() if name in _TENSORS}


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
