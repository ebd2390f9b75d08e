"""Labels of channels, collected over forward passes: where layers read channels and make new ones.

Every tensor element has a label: channel + 1, zero if unknown, or negative if it is fixed and cannot be removed, such
as the network's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiment.layers.channels.labels import Integers, Labels
from experiment.layers.channels.slicing import channel_counts, is_sliceable

CHANNEL_MAKERS = (nn.Conv2d, nn.Linear)


class Follower:
    """Labels of all channels of a network, collected over any number of forward passes.

    Attributes:
        labels: the channels and their places.
        called: modules with own parameters that some pass called or read.
        widths: layer -> number of values per sample of its output, which may be flattened.
        norms: layer -> the BatchNorm that alone reads its output, directly, in each pass; None if there is none.
    """

    def __init__(self, network: nn.Module) -> None:
        self.labels = Labels()
        self.names = {module: name for name, module in network.named_modules()}
        self.called: set[str] = set()
        self.widths: dict[str, set[int]] = {}
        self.norms: dict[str, set[str | None]] = {}
        self.network = network
        self._tied = _tied(network)
        self._reasons: list[str] = []
        self.fixed: dict[int, tuple[int, str]] = {}  # storage -> label, and the module that holds it
        for module, name in self.names.items():
            for own, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                self.fixed[storage_key(tensor)] = (self.reason(_why_fixed(module, name, own)), name)

    def reason(self, text: str) -> int:
        """The negative label of elements that are fixed for this reason."""
        if text not in self._reasons:
            self._reasons.append(text)
        return -1 - self._reasons.index(text)

    def flag(self, here: Iterable[int], label: int) -> None:
        """Exempt channels that are combined with something fixed."""
        self.labels.flag(here, self._reasons[-1 - label])

    def layer(self, module: nn.Module, x: Tensor, read: Tensor, y: Tensor) -> Tensor:
        """The labels of a layer's output (broadcastable to it), from those of its input.

        Args:
            x, y: its input and output. read: the labels of x.
        """
        name, (outputs, inputs) = self.names[module], channel_counts(module)
        self.called.add(name)
        if isinstance(module, nn.PReLU) and outputs == 1:
            return read
        pointwise = not isinstance(module, CHANNEL_MAKERS)
        dim = -1 if isinstance(module, nn.Linear) else -3 if isinstance(module, nn.Conv2d) else 1
        reads = self._one_a_channel(read, dim)
        self.labels.read((name, "out" if pointwise else "in"), inputs, reads)
        if pointwise:
            made = reads
        else:
            made = self.labels.made((name, "out"), outputs)
            self.widths.setdefault(name, set()).add(y.numel() // max(len(x), 1))
        reason = None if is_sliceable(module) else f"channels cannot be removed from '{name}' ({type(module).__name__})"
        if module in self._tied:
            reason = f"'{name}' shares its parameters with another layer"
        if reason is not None:
            self.labels.flag([label - 1 for label in (*made, *reads) if label > 0], reason)
        shape = [1] * y.dim()
        shape[dim] = -1
        return torch.from_numpy(made.astype(np.float32)).to(y.device).reshape(shape)

    def _one_a_channel(self, read: Tensor, dim: int) -> Integers:
        """The label at every index of a channel dimension; labels that share an index are merged."""
        rows = compact(read).movedim(dim, 0).flatten(1).cpu().numpy().astype(np.int64)
        first = rows[:, 0].copy()
        for place in np.flatnonzero((rows != first[:, None]).any(1)):
            first[place] = self.one(np.unique(rows[place]).tolist())
        return np.broadcast_to(first, (read.shape[dim],)).copy()

    def one(self, labels: Sequence[int]) -> int:
        """Merge these labels; if one of them is fixed, none of the channels may be removed."""
        live, fixed = [label for label in labels if label > 0], [label for label in labels if label < 0]
        self.labels.tie(label - 1 for label in live)
        if fixed:
            self.flag((label - 1 for label in live), fixed[0])
        return (live or fixed or [0])[0]

    def combined(self, parts: Sequence[Tensor]) -> Tensor:
        """The labels of an elementwise operation's output, broadcastable to it; channels at the same index are merged.

        Operands that are broadcast along the channels, such as a mask of one channel, do not matter.
        """
        dims = max(part.dim() for part in parts)
        parts = [part.reshape([1] * (dims - part.dim()) + list(part.shape)) for part in parts]
        shape = np.broadcast_shapes(*(tuple(part.shape) for part in parts))
        channels = {d for p in map(compact, parts) if bool((p > 0).any()) for d in range(dims) if p.shape[d] > 1}
        parts = [part for part in parts if part.any() and all(part.shape[d] == shape[d] for d in channels)]
        if not parts:
            return torch.zeros([1] * dims)
        parts = [compact(part) for part in parts]
        whole = np.broadcast_shapes(*(tuple(part.shape) for part in parts))
        result = parts[0].expand(whole)
        for part in parts[1:]:
            other = part.expand(whole)
            differ = (result != other) & (result != 0) & (other != 0)
            pairs = torch.stack([result[differ], other[differ]]).cpu().numpy().astype(np.int64)
            for pair in np.unique(pairs, axis=1).T.tolist():
                self.one(pair)
            result = torch.where(result > 0, result, torch.where((other > 0) | (result == 0), other, result))
        return result


def storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else 0


def distinct(labels: Tensor) -> list[int]:
    """The different labels of a tensor."""
    return [int(label) for label in np.unique(compact(labels).cpu().numpy())]


def channels_in(labels: Tensor) -> list[int]:
    """The channels among the labels of a tensor."""
    return [label - 1 for label in distinct(labels) if label > 0]


def compact(labels: Tensor) -> Tensor:
    """The same labels with size 1 along every dimension along which they are constant."""
    for d in range(labels.dim()):
        if labels.shape[d] > 1:
            one = labels.narrow(d, 0, 1)
            if labels.stride(d) == 0 or bool((labels == one).all()):
                labels = one
    return labels


def _why_fixed(module: nn.Module, name: str, own: str) -> str:
    """Why channels combined with a parameter or buffer outside a sliceable layer's call must be kept."""
    if is_sliceable(module):
        return f"'{name}' is used outside its own call"
    if type(module).__module__.startswith("torch.nn") or parametrize.is_parametrized(module):
        return f"channels cannot be removed from '{name}' ({type(module).__name__})"
    kind = "parameter" if own in dict(module.named_parameters(recurse=False)) else "buffer"
    return f"they meet the bare {kind} '{f'{name}.{own}' if name else own}'"


def _tied(network: nn.Module) -> set[nn.Module]:
    holders: dict[int, list[nn.Module]] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(module)
    return {module for sharing in holders.values() if len(sharing) > 1 for module in sharing}
