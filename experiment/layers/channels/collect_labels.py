"""Labels of channels, collected over forward passes: where layers read channels and make new ones.

Every tensor element has a label: channel + 1, zero if unknown, or negative if it is fixed and cannot be removed, such
as the network's input.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiment.layers.channels import channel_axes
from experiment.layers.channels.labels import Integers, Labels


class Follower:
    """Labels of all channels of a network, collected over any number of forward passes.

    Attributes:
        labels: the channels and their places.
        called: modules with own parameters that some pass called or read.
        widths: layer -> number of values per sample of its output, which may be flattened.
        norms: layer -> the BatchNorm that alone reads its output, directly, in each pass; None if there is none.
    """

    def __init__(self, network: nn.Module, labels: Labels | None = None) -> None:
        self.labels = labels or Labels()
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
        self.bare = {  # their labels are written before every pass
            name: (parameter, self._made_by(name, parameter))
            for name, parameter in channel_axes.bare_parameters(network).items()
        }
        self.bare_reasons = {key: self.fixed.pop(key) for key in {storage_key(p) for p, _ in self.bare.values()}}
        _tie_embeddings(network, self.names, self.labels)

    def _made_by(self, name: str, parameter: Tensor) -> Tensor:
        """The labels of a bare parameter's channels, broadcastable to it."""
        dim = channel_axes.parameter_dim(parameter.shape)
        assert dim is not None
        made = self.labels.made((name, "out"), parameter.shape[dim])
        self.labels.bare.add((name, "out"))
        shape = [1] * parameter.dim()
        shape[dim] = -1
        return torch.from_numpy(made.astype(np.float32)).to(parameter.device).reshape(shape)

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
        name, (outputs, inputs) = self.names[module], channel_axes.channel_counts(module)
        self.called.add(name)
        if isinstance(module, nn.PReLU) and outputs == 1:
            return read
        pointwise = not isinstance(module, channel_axes.CHANNEL_MAKERS)
        dim = channel_axes.channel_dim(module, y)
        if isinstance(module, nn.Embedding):
            reads = np.zeros(0, np.int64)  # indices
        elif channel_axes.normalises_channels(module) and self._has_heads(read, dim):
            return self.merged([read], [dim % y.dim() - y.dim()])  # one norm for every head
        else:
            reads = self._one_a_channel(read, dim)
            self.labels.read((name, "out" if pointwise else "in"), inputs, reads)
        if pointwise:
            made = self.labels.passed((name, "out"), reads)
        else:
            made = self.labels.filtered((name, "out"), outputs, reads, getattr(module, "groups", 1))
            self.widths.setdefault(name, set()).add(y.numel() // max(len(x), 1))
        kind = ("grouped " if getattr(module, "groups", 1) > 1 else "") + type(module).__name__
        kind += " with max_norm" if getattr(module, "max_norm", None) is not None else ""
        reason = None if channel_axes.is_sliceable(module) else f"channels cannot be removed from '{name}' ({kind})"
        if pointwise and y.shape != x.shape:
            reason = f"'{name}' returns another shape than it takes"
        flagged = [*made, *reads]
        if module in self._tied:
            reason = f"'{name}' shares its parameters with another layer"
            flagged = flagged if self._tied[module] else list(made)
        if reason is not None:
            self.labels.flag([label - 1 for label in flagged if label > 0], reason)
        shape = [1] * y.dim()
        shape[dim] = -1
        return torch.from_numpy(made.astype(np.float32)).to(y.device).reshape(shape)

    def _has_heads(self, labels: Tensor, dim: int) -> bool:
        """Whether different channels of one layer share an index of a dimension, as those of heads do."""
        rows = compact(labels).movedim(dim, 0).flatten(1).cpu().numpy().astype(np.int64)
        sharing = (np.unique(row[row > 0]).tolist() for row in rows)
        several = next((row for row in sharing if len(row) > 1), None)
        return several is not None and self.labels.made_by_one(several)

    def merged(self, parts: Sequence[Tensor], dims: Sequence[int]) -> Tensor:
        """One label for each index of the other dimensions, of which all labels are merged, such as those of a head.

        Args:
            parts: labels, broadcastable to each other but for these dimensions.
            dims: the dimensions to merge, counted from the end.
        """
        most = max(part.dim() for part in parts)
        rows = [compact(part.reshape([1] * (most - part.dim()) + list(part.shape))) for part in parts]
        whole = list(
            np.broadcast_shapes(*([1 if d - most in dims else n for d, n in enumerate(p.shape)] for p in rows))
        )
        found = []
        for part in rows:
            part = part.expand([part.shape[d] if d - most in dims else n for d, n in enumerate(whole)])
            found.append(part.movedim(list(dims), list(range(-len(dims), 0))).flatten(-len(dims)))
        table = torch.cat([part.reshape(-1, part.shape[-1]) for part in found], 1).cpu().numpy().astype(np.int64)
        different, inverse = np.unique(table, axis=0, return_inverse=True)
        one = np.array([self.one(np.unique(row[row != 0]).tolist()) for row in different], np.float32)
        return torch.from_numpy(one[inverse.reshape(-1)]).to(parts[0].device).reshape(whole)

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

    def combined(self, parts: Sequence[Tensor], *, added: bool = False) -> Tensor:
        """The labels of an elementwise operation's output, broadcastable to it; channels at the same index are merged.

        Operands that are broadcast along the channels, such as a mask of one channel, do not matter.

        Args:
            added: whether the operation is a sum.
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
            merged = torch.where(result > 0, result, torch.where((other > 0) | (result == 0), other, result))
            for pair in np.unique(pairs, axis=1).T.tolist():
                one = self.labels.added(*pair) if added and min(pair) > 0 else self.one(pair)
                if one not in pair:
                    merged[(result == pair[0]) & (other == pair[1])] = one
            result = merged
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


def _tie_embeddings(network: nn.Module, names: Mapping[nn.Module, str], labels: Labels) -> None:
    """Unite the channels of embeddings with those that layers with the same weight read."""
    for holders in _holders(network).values():
        layers = [m for m in holders if isinstance(m, nn.Embedding | nn.Linear) and channel_axes.is_sliceable(m)]
        embeddings = [m for m in layers if isinstance(m, nn.Embedding)]
        made = [labels.made((names[m], "out"), m.embedding_dim) for m in embeddings if len(layers) > 1]
        for pair in zip(*made, strict=True):
            labels.tie(int(label) - 1 for label in pair)
        for module in layers if made else ():
            if isinstance(module, nn.Linear):
                labels.read((names[module], "in"), module.in_features, made[0])


def _why_fixed(module: nn.Module, name: str, own: str) -> str:
    """Why channels combined with a parameter or buffer outside a sliceable layer's call must be kept."""
    if channel_axes.is_sliceable(module):
        return f"'{name}' is used outside its own call"
    if type(module).__module__.startswith("torch.nn") or parametrize.is_parametrized(module):
        return f"channels cannot be removed from '{name}' ({type(module).__name__})"
    kind = "parameter" if own in dict(module.named_parameters(recurse=False)) else "buffer"
    return f"they meet the bare {kind} '{f'{name}.{own}' if name else own}'"


def _tied(network: nn.Module) -> dict[nn.Module, bool]:
    """The layers that share parameters, unless an embedding takes part, and whether it is more than the bias."""
    tied: dict[nn.Module, bool] = {}
    for parameter, holders in _holders(network).items():
        if len(holders) > 1 and not any(isinstance(m, nn.Embedding) and channel_axes.is_sliceable(m) for m in holders):
            for module in holders:
                tied[module] = tied.get(module, False) or parameter.dim() > 1
    return tied


def _holders(network: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(parameter, []).append(module)
    return holders
