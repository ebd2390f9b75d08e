"""Following channels through a forward pass: every tensor carries, element by element, the channel that it belongs to.

Operations that move data move the labels likewise, be it a view, a concatenation, a shuffle or a window partition;
elementwise ones make the channels that they combine one; layers say where they read channels and make new ones. So the
work is that of a few forward passes, whatever the network. What an operation mixes is followed no further, and noted:
whether its channels can go all the same is tried out afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from experiment.layers.channels.check_slicing import Run, flat
from experiment.layers.channels.labels import Integers, Labels
from experiment.layers.channels.slicing import channel_counts, is_sliceable

GIVES_OUTPUT = "they give the network's output"
MEETS_INPUT = "they meet the network's input"

# operations that move data without computing: they move labels in the same way
_MOVES = frozenset({
    "cat", "stack", "clone", "_to_copy", "copy_", "index", "index_select", "gather", "take", "roll", "flip", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "slice_scatter", "select_scatter",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "im2col", "repeat_interleave",
    "index_put_", "index_copy_", "scatter_", "masked_select", "split_with_sizes_copy", "tril", "triu",
})  # fmt: skip
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # where their two factors stand among the arguments
_OF_A_CHANNEL = (nn.Conv2d, nn.Linear)


class Follower:
    """Labels of all channels of a network, collected over any number of passes.

    Attributes:
        labels: the channels and their places.
        called: the modules with parameters of their own that some pass called, or read in another way.
        widths: layer -> how many values a sample its output has, for those who flatten it.
        norms: layer -> the BatchNorms that alone read its output, directly behind it, one a pass; None: there is none.
    """

    def __init__(self, network: nn.Module) -> None:
        self.labels = Labels()
        self.names = {module: name for name, module in network.named_modules()}
        self.called: set[str] = set()
        self.widths: dict[str, set[int]] = {}
        self.norms: dict[str, set[str | None]] = {}
        self._network = network
        self._tied = _tied(network)
        self._reasons: list[str] = []
        self._fixed: dict[int, tuple[int, str]] = {}  # storage -> label, and the module that holds it
        for module, name in self.names.items():
            tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for own, tensor in tensors:
                self._fixed[_key(tensor)] = (self._reason(_why_fixed(module, name, own)), name)

    def follow(self, run: Run) -> None:
        """Label the channels in one more run of the network."""
        tracing = _Pass(self, run.inputs, self._reason(MEETS_INPUT))
        with tracing.hooks(), torch.enable_grad():
            tracing.end(run.of(self._network, tracing))

    def _reason(self, text: str) -> int:
        if text not in self._reasons:
            self._reasons.append(text)
        return -1 - self._reasons.index(text)

    def flag(self, here: Iterable[int], label: int) -> None:
        """Channels that meet what is fixed may not go."""
        self.labels.flag(here, self._reasons[-1 - label])

    def layer(self, module: nn.Module, x: Tensor, read: Tensor, y: Tensor) -> Tensor:
        """The labels of a layer's output (broadcastable to it), from those of what it reads.

        Args:
            x, y: its input and output. read: the labels of x.
        """
        name, (outputs, inputs) = self.names[module], channel_counts(module)
        self.called.add(name)
        if isinstance(module, nn.PReLU) and outputs == 1:
            return read
        pointwise = not isinstance(module, _OF_A_CHANNEL)
        dim = -1 if isinstance(module, nn.Linear) else -3 if isinstance(module, nn.Conv2d) else 1
        reads = self._one_a_channel(read, dim)
        self.labels.read((name, "out" if pointwise else "in"), inputs, reads)
        if pointwise:
            made = reads
        else:
            made = self.labels.made((name, "out"), outputs)
            self.widths.setdefault(name, set()).add(y.numel() // max(len(x), 1))
        reason = None if is_sliceable(module) else f"no channel can be cut out of '{name}' ({type(module).__name__})"
        if module in self._tied:
            reason = f"'{name}' shares its parameters with another layer"
        if reason is not None:
            self.labels.flag([label - 1 for label in (*made, *reads) if label > 0], reason)
        shape = [1] * y.dim()
        shape[dim] = -1
        return torch.from_numpy(made.astype(np.float32)).to(y.device).reshape(shape)

    def _one_a_channel(self, read: Tensor, dim: int) -> Integers:
        """The label at every place of a channel dimension; labels that share a place are one channel from now on."""
        rows = _compact(read).movedim(dim, 0).flatten(1).cpu().numpy().astype(np.int64)
        first = rows[:, 0].copy()
        for place in np.flatnonzero((rows != first[:, None]).any(1)):
            first[place] = self.one(np.unique(rows[place]).tolist())
        return np.broadcast_to(first, (read.shape[dim],)).copy()

    def one(self, labels: Sequence[int]) -> int:
        """The label that stands for all of these, made one; none of them may go if one of them is fixed."""
        live, fixed = [label for label in labels if label > 0], [label for label in labels if label < 0]
        self.labels.tie(label - 1 for label in live)
        if fixed:
            self.flag((label - 1 for label in live), fixed[0])
        return (live or fixed or [0])[0]

    def combined(self, parts: Sequence[Tensor]) -> Tensor:
        """The labels of an elementwise operation's output, broadcastable to it; what stands together becomes one.

        An operand that is broadcast along the channels, such as a mask of one channel, says nothing about them.
        """
        dims = max(part.dim() for part in parts)
        parts = [part.reshape([1] * (dims - part.dim()) + list(part.shape)) for part in parts]
        shape = np.broadcast_shapes(*(tuple(part.shape) for part in parts))
        channels = {d for p in map(_compact, parts) if bool((p > 0).any()) for d in range(dims) if p.shape[d] > 1}
        parts = [part for part in parts if part.any() and all(part.shape[d] == shape[d] for d in channels)]
        if not parts:
            return torch.zeros([1] * dims)
        parts = [_compact(part) for part in parts]
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


class _Pass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The labels of one forward pass, one a place of every storage, so that views of a tensor share its labels."""

    def __init__(self, follower: Follower, inputs: Tensor, label: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._follower = follower
        self._held: dict[int, tuple[object, Tensor]] = {}  # the storage is held, so that its key stays its own
        self._inside = 0  # of layers, whose operations do not matter
        self._makers: dict[int, tuple[str, torch.Size]] = {}  # storage -> the layer whose output it is, its shape
        self._readers: dict[str, list[str | None]] = {}  # layer -> who reads its output; None: not a module
        self._sources: dict[str, list[str | None]] = {}  # BatchNorm -> what it reads
        self._calls: dict[str, int] = {}
        self._write(inputs, torch.full((1,) * inputs.dim(), float(label), device=inputs.device))

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles: list[Any] = []
        for module in self._follower.names:
            if is_sliceable(module) or isinstance(module, _OF_A_CHANNEL):
                handles.append(module.register_forward_pre_hook(self._enter))
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def end(self, output: object) -> None:
        """What gives the output stays."""
        for tensor in flat(output):
            self._reads(tensor, None)
            self._follower.labels.flag(
                [label - 1 for label in _values(self._labels(tensor)) if label > 0], GIVES_OUTPUT
            )
        for name in self._calls:
            readers = self._readers.get(name, [])
            norm = readers[0] if len(readers) == 1 and self._calls[name] == 1 else None
            alone = norm is not None and self._sources.get(norm) == [name]
            self._follower.norms.setdefault(name, set()).add(norm if alone else None)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._inside:
            return out
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for i, x in enumerate(args) if _is_written(func, i) and isinstance(x, Tensor)]
        known = {_key(x) for x in tensors}
        fresh = [x for x in tree_leaves(out) if isinstance(x, Tensor) and _key(x) not in known]
        if fresh or written:
            for tensor in tensors:
                self._reads(tensor, None)
            try:
                self._operation(func, args, kwargs, tensors, written, fresh)
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
                # an operation that takes numbers but no labels, or is none of those known here
                live = {label - 1 for x in tensors for label in _values(self._labels(x)) if label > 0}
                self._follower.labels.flag(live, f"'{func.overloadpacket.__name__}' cannot be followed")
        return out

    def _operation(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: Sequence[Tensor],
        written: Sequence[Tensor],
        fresh: Sequence[Tensor],
    ) -> None:
        """Give labels to what an operation made or wrote."""
        name = func.overloadpacket.__name__
        if name.endswith("_like") or name.startswith("new_"):
            return  # of a tensor's shape, with nothing of it
        parts = [self._labels(x) for x in tensors]
        if not any(x.is_floating_point() for x in (*written, *fresh)) or not any(part.any() for part in parts):
            return
        if name in _MOVES or name == "constant_pad_nd":
            self._move(func, args, kwargs, name, written, fresh)
        elif name in _PRODUCTS:
            first, second = args[_PRODUCTS[name] :][:2]
            self._write(fresh[0], self._product(self._labels(first), self._labels(second), name))
        elif "scaled_dot_product" in name:
            self._follower.combined([_first(self._labels(x), -2) for x in args[:2]])
            self._write(fresh[0], _first(self._labels(args[2]), -2))
        elif name in ("zero_", "fill_"):
            self._write(written[0], torch.zeros_like(parts[0]))
        elif torch.Tag.pointwise in func.tags or (written and name.endswith("_")):
            for made in (*written, *fresh):
                self._write(made, self._follower.combined(parts))
        else:
            self._other(func, args, kwargs, parts, fresh)

    def _move(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        name: str,
        written: Sequence[Tensor],
        fresh: Sequence[Tensor],
    ) -> None:
        floating = written[0].dtype if written else fresh[0].dtype
        moved: Any = tree_map(lambda x: self._labels(x) if _holds_data(x, floating) else x, (args, dict(kwargs)))
        given, named = moved
        if name == "constant_pad_nd":
            given, named = given[:2], {}
        if name == "_to_copy":
            given, named, func = given[:1], {}, torch.ops.aten.clone.default
        if written and _key(written[0]) in self._follower._fixed:
            return  # a buffer that keeps what it is given; it stays fixed
        if written:
            self._own(written[0])
            given = (self._labels(written[0]), *given[1:3])  # what is added up has one label all the same
        labels = func(*given, **named)
        if not written:
            for made, label in zip(fresh, [x for x in tree_leaves(labels) if isinstance(x, Tensor)], strict=True):
                self._write(made, label)

    def _product(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """The labels of a @ b: those of rows of a and of columns of b; channels that are summed over end here."""
        varied = [_compact(a).shape[-1] > 1, _compact(b).shape[-2] > 1]
        if any(varied):
            self._follower.combined([_first(a, -2).transpose(-1, -2), _first(b, -1)])
        for part, sums in zip((a, b), varied, strict=True):
            if sums:
                self._lost(part, name)
        left = torch.zeros_like(_first(a, -1)) if varied[0] else _first(a, -1)
        right = torch.zeros_like(_first(b, -2)) if varied[1] else _first(b, -2)
        if (left > 0).any() and (right > 0).any():  # channels by channels: a place belongs to two of them
            self._lost(left, name)
            self._lost(right, name)
            return torch.zeros(())
        return self._follower.combined([left, right])

    def _other(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        parts: Sequence[Tensor],
        fresh: Sequence[Tensor],
    ) -> None:
        """Reductions end the channels that they reduce; all else is taken to treat each of them by itself."""
        name = func.overloadpacket.__name__
        live = [part for part in parts if (part > 0).any()]
        fixed = sorted({label for part in parts for label in _values(part) if label < 0})
        varied = [part for part in parts if part.numel() > 1 and (part < 0).any()]
        if live and fixed and varied:
            for part in live:
                self._follower.flag([label - 1 for label in _values(part) if label > 0], fixed[0])
            return
        if len(live) != 1:
            for part in live:
                self._lost(part, name)
            label = torch.full((), float(fixed[0])) if fixed and not live else None
            for made in fresh:
                if label is not None:
                    self._write(made, label.to(made.device))
            return
        compact, dims = _compact(live[0]), live[0].dim()
        arguments = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
        if any(a.name == "keepdim" for a in func._schema.arguments):
            given = arguments.get("dim")
            reduced = {d % dims for d in ([given] if isinstance(given, int) else given or range(dims))}
            if any(compact.shape[d] > 1 for d in reduced):
                self._lost(live[0], name)
                return
            if not arguments.get("keepdim"):
                for d in sorted(reduced, reverse=True):
                    compact = compact.squeeze(d)
        elif isinstance(along := arguments.get("dim"), int) and compact.shape[along] > 1:
            self._lost(live[0], name)  # a softmax over channels, say; what it gives has channels all the same
        for made in fresh:
            fits = compact.dim() == made.dim() and all(
                here in (1, there) for here, there in zip(compact.shape, made.shape, strict=True)
            )
            if fits:
                self._write(made, compact)
            else:
                self._lost(live[0], name)

    def _lost(self, part: Tensor, name: str) -> None:
        self._follower.labels.note([label - 1 for label in _values(part) if label > 0], name)

    def _enter(self, module: nn.Module, args: object) -> None:
        self._inside += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], y: Tensor) -> None:
        self._inside -= 1
        if self._inside or not isinstance(y, Tensor):
            return
        x, name = args[0] if args else kwargs["input"], self._follower.names[module]
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            maker, shape = self._makers.get(_key(x), (None, None))
            direct = maker is not None and shape == x.shape
            self._sources.setdefault(name, []).append(maker if direct else None)
            self._reads(x, name if direct else None)
        else:
            self._reads(x, None)
        self._calls[name] = self._calls.get(name, 0) + 1
        self._write(y, self._follower.layer(module, x, self._labels(x), y))
        self._makers[_key(y)] = (name, y.shape)

    def _reads(self, tensor: Tensor, reader: str | None) -> None:
        key = _key(tensor)
        if key in self._makers:
            self._readers.setdefault(self._makers[key][0], []).append(reader)
        if key in self._follower._fixed:
            self._follower.called.add(self._follower._fixed[key][1])

    def _labels(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor, in its shape: a view of those of its storage."""
        key = _key(tensor)
        if key in self._held:
            labels = self._held[key][1]
            if labels.numel() >= _extent(tensor):
                return labels.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        label = self._follower._fixed.get(key, (0, ""))[0]
        return torch.full((), float(label), device=tensor.device).expand(tensor.shape)

    def _own(self, tensor: Tensor) -> None:
        """Room for labels of a tensor's storage."""
        if _key(tensor) not in self._held:
            storage = tensor.untyped_storage()
            room = torch.zeros(storage.nbytes() // tensor.element_size(), device=tensor.device)
            self._held[_key(tensor)] = (storage, room)

    def _write(self, tensor: Tensor, labels: Tensor) -> None:
        """Label a tensor; labels are broadcast to its shape."""
        if tensor.layout != torch.strided or _key(tensor) in self._follower._fixed or not tensor.numel():
            return
        if _key(tensor) not in self._held and not labels.any():
            return
        self._own(tensor)
        with torch.no_grad():
            self._labels(tensor).copy_(labels.clone())  # they may be a view of what is written


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else 0


def _extent(tensor: Tensor) -> int:
    """How many places of its storage a tensor reaches over."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset() + sum((n - 1) * step for n, step in steps) + 1) if tensor.numel() else 0


def _values(labels: Tensor) -> list[int]:
    return [int(label) for label in np.unique(_compact(labels).cpu().numpy())]


def _compact(labels: Tensor) -> Tensor:
    """The same labels, of size 1 along every dimension along which they do not change."""
    for d in range(labels.dim()):
        if labels.shape[d] > 1:
            one = labels.narrow(d, 0, 1)
            if labels.stride(d) == 0 or bool((labels == one).all()):
                labels = one
    return labels


def _first(labels: Tensor, dim: int) -> Tensor:
    return labels.narrow(dim, 0, 1)


def _is_written(func: Any, i: int) -> bool:
    alias = func._schema.arguments[i].alias_info if i < len(func._schema.arguments) else None
    return alias is not None and alias.is_write


def _holds_data(x: object, dtype: torch.dtype) -> bool:
    """Whether a tensor among an operation's arguments is what it moves, rather than says where to."""
    return isinstance(x, Tensor) and (x.dtype == dtype or x.is_floating_point())


def _why_fixed(module: nn.Module, name: str, own: str) -> str:
    """Why channels that meet a module's parameter or buffer outside of a layer that can be cut must stay."""
    if is_sliceable(module):
        return f"'{name}' is read by something else than its own call"
    if type(module).__module__.startswith("torch.nn") or parametrize.is_parametrized(module):
        return f"no channel can be cut out of '{name}' ({type(module).__name__})"
    kind = "parameter" if own in dict(module.named_parameters(recurse=False)) else "buffer"
    return f"they meet the bare {kind} '{f'{name}.{own}' if name else own}'"


def _tied(network: nn.Module) -> set[nn.Module]:
    holders: dict[int, list[nn.Module]] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(module)
    return {module for sharing in holders.values() if len(sharing) > 1 for module in sharing}
