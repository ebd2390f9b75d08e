"""Following channels through a forward pass: every operation moves, combines or ends the labels of its operands.

Operations that move data, such as views, concatenations, shuffles or window partitions, move the labels likewise.
Elementwise operations merge the channels that they combine. The cost is that of a few forward passes. Channels are not
followed through operations that mix them; these are recorded, and removal of such channels is tested afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from experiment.inputs import Inputs, tensors
from experiment.layers.channels.channel_axes import CHANNEL_MAKERS, is_sliceable
from experiment.layers.channels.check_slicing import Run, results
from experiment.layers.channels.collect_labels import Follower, channels_in, compact, distinct, storage_key
from experiment.layers.forward_pass import Call, observing

GIVES_OUTPUT = "they compute the network's output"
MEETS_INPUT = "they are combined with the network's input"

# operations that only move data: they move labels in the same way
_MOVES = frozenset({
    "cat", "stack", "clone", "_to_copy", "copy_", "index", "index_select", "gather", "take", "roll", "flip", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "slice_scatter", "select_scatter",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "im2col", "repeat_interleave",
    "index_put_", "index_copy_", "scatter_", "masked_select", "split_with_sizes_copy", "tril", "triu",
})  # fmt: skip
_SUMS = frozenset({"add", "sub", "rsub"})
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # positions of the two factors among the arguments


def follow(follower: Follower, run: Run) -> None:
    """Label the channels in one more run of the network."""
    labelled = LabelledPass(follower, run.inputs, follower.reason(MEETS_INPUT))
    layers = {n: m for m, n in follower.names.items() if is_sliceable(m) or isinstance(m, CHANNEL_MAKERS)}
    with observing(layers, before=labelled.enter, after=labelled.leave), torch.enable_grad():
        labelled.end(run.of(follower.network, labelled))


@dataclass(frozen=True)
class Operation:
    """One operation of torch: its arguments, and the tensors that it wrote or returned."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensors: Sequence[Tensor]
    written: Sequence[Tensor]
    fresh: Sequence[Tensor]

    @property
    def name(self) -> str:
        return str(self.func.overloadpacket.__name__)

    @property
    def named(self) -> dict[str, Any]:
        """All arguments by their names in the operation's schema."""
        return {a.name: x for a, x in zip(self.func._schema.arguments, self.args, strict=False)} | dict(self.kwargs)


class LabelledPass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The labels of one forward pass, one per storage element, so that views of a tensor share its labels."""

    def __init__(self, follower: Follower, inputs: Inputs, label: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._follower = follower
        self._held: dict[int, tuple[object, Tensor]] = {}  # keeps the storage alive, so that its key is not reused
        self._inside = 0  # in layers, whose operations do not matter
        self._makers: dict[int, tuple[str, torch.Size]] = {}  # storage -> the layer whose output it is, its shape
        self._readers: dict[str, list[str | None]] = {}  # layer -> who reads its output; None: not a module
        self._sources: dict[str, list[str | None]] = {}  # BatchNorm -> what it reads
        self._calls: dict[str, int] = {}
        for tensor in tensors(inputs):
            self._write(tensor, torch.full((1,) * tensor.dim(), float(label), device=tensor.device))
        for parameter, labels in follower.bare.values():
            self._write(parameter, labels)

    def end(self, output: object) -> None:
        """Exempt the channels that compute the output, and note which BatchNorm alone reads each layer."""
        for tensor in results(output):
            self._reads(tensor, None)
            self._follower.labels.flag(channels_in(self._labels(tensor)), GIVES_OUTPUT)
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
        known = {storage_key(x) for x in tensors}
        operation = Operation(
            func, args, kwargs, tensors,
            written=[x for i, x in enumerate(args) if _is_written(func, i) and isinstance(x, Tensor)],
            fresh=[x for x in tree_leaves(out) if isinstance(x, Tensor) and storage_key(x) not in known],
        )  # fmt: skip
        if operation.fresh or operation.written:
            for tensor in tensors:
                self._reads(tensor, None)
            try:
                self._follow(operation)
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
                # an operation that does not accept labels, or is unknown
                for tensor in tensors:
                    channels = channels_in(self._labels(tensor))
                    self._follower.labels.flag(channels, f"'{operation.name}' cannot be followed")
        return out

    def _follow(self, op: Operation) -> None:
        """Label the results of an operation."""
        name, made = op.name, (*op.written, *op.fresh)
        if name.endswith("_like") or name.startswith("new_"):
            return  # has a tensor's shape but no values
        parts = [self._labels(x) for x in op.tensors]
        if not any(x.is_floating_point() for x in made) or not any(part.any() for part in parts):
            return
        if name in _MOVES or name == "constant_pad_nd":
            self._move(op)
        elif name in _PRODUCTS:
            first, second = op.args[_PRODUCTS[name] :][:2]
            self._write(op.fresh[0], self._product(first, second, name))
        elif "scaled_dot_product" in name:
            self._write(op.fresh[0], self._attention(op))
        elif name in ("zero_", "fill_"):
            self._write(op.written[0], torch.zeros_like(parts[0]))
        elif torch.Tag.pointwise in op.func.tags or (op.written and name.endswith("_")):
            for tensor in made:
                self._write(tensor, self._follower.combined(parts, added=name.rstrip("_") in _SUMS))
        else:
            self._other(op, parts)

    def _move(self, op: Operation) -> None:
        """Apply the operation to the labels."""
        func, written = op.func, op.written
        floating = written[0].dtype if written else op.fresh[0].dtype
        moved: Any = tree_map(lambda x: self._labels(x) if _holds_data(x, floating) else x, (op.args, dict(op.kwargs)))
        given, named = moved
        if op.name == "constant_pad_nd":
            given, named = given[:2], {}
        if op.name == "_to_copy":
            given, named, func = given[:1], {}, torch.ops.aten.clone.default
        if written and storage_key(written[0]) in self._follower.fixed:
            return  # a buffer that stores its input; it remains fixed
        if written:
            self._own(written[0])
            given = (self._labels(written[0]), *given[1:3])  # the summands have one label all the same
        labels = func(*given, **named)
        if not written:
            for made, label in zip(op.fresh, [x for x in tree_leaves(labels) if isinstance(x, Tensor)], strict=True):
                self._write(made, label)

    def _attention(self, op: Operation) -> Tensor:
        """The labels of scaled dot-product attention's output: one for each head, of which all channels are tied."""
        bias = op.named.get("attn_mask", op.named.get("attn_bias"))
        q, k, v = (self._labels(x) for x in op.args[:3])
        if all(compact(x).shape[:-2].numel() == 1 for x in (q, k, v)):
            self._follower.combined([_first(q, -2), _first(k, -2)])
            return _first(v, -2)
        parts = [q]
        for part in (k, v):
            queries = q.shape[-3] // part.shape[-3]  # of one group
            parts.append(part if queries == 1 else part.repeat_interleave(queries, -3))
        if isinstance(bias, Tensor) and bool((self._labels(bias) > 0).any()):
            parts.append(self._labels(bias))
        return self._follower.merged(parts, [-2, -1])

    def _product(self, first: Tensor, second: Tensor, name: str) -> Tensor:
        """The labels of a @ b: those of rows of a and of columns of b; channels that are summed over end here.

        In a batch of products with channels of their own, such as those of heads, all channels of each one are tied.
        """
        a, b = self._labels(first), self._labels(second)
        varied = [compact(a).shape[-1] > 1, compact(b).shape[-2] > 1]
        left = torch.zeros_like(_first(a, -1)) if varied[0] else _first(a, -1)
        right = torch.zeros_like(_first(b, -2)) if varied[1] else _first(b, -2)
        crossing = bool((left > 0).any()) and bool((right > 0).any())
        if max(compact(x).shape[:-2].numel() for x in (a, b)) > 1 and (any(varied) or crossing):
            return self._follower.merged([a, b], [-2, -1])
        if any(varied):
            self._follower.combined([_first(a, -2).transpose(-1, -2), _first(b, -1)])
        for part, sums in zip((a, b), varied, strict=True):
            if sums:
                self._lost(part, name)
        if crossing:  # channels by channels: each element belongs to two of them
            self._lost(left, name)
            self._lost(right, name)
            return torch.zeros(())
        bare = self._follower.bare_reasons.get(storage_key(second))
        if varied[1] and bare is not None:  # a weight whose rows are no known channels
            return torch.full((1,) * a.dim(), float(bare[0]), device=a.device)
        return self._follower.combined([left, right])

    def _other(self, op: Operation, parts: Sequence[Tensor]) -> None:
        """Reductions end the channels that they reduce; other operations are assumed to treat each one separately."""
        live = [part for part in parts if (part > 0).any()]
        bare = [b for x in op.tensors if (b := self._follower.bare_reasons.get(storage_key(x))) is not None]
        if bare and len(live) > 1:
            for part in live:
                self._follower.flag(channels_in(part), bare[0][0])
        fixed = sorted({label for part in parts for label in distinct(part) if label < 0})
        varied = [part for part in parts if part.numel() > 1 and (part < 0).any()]
        if live and fixed and varied:
            for part in live:
                self._follower.flag(channels_in(part), fixed[0])
        elif len(live) == 1:
            self._alone(op, live[0])
        else:
            for part in live:
                self._lost(part, op.name)
            for made in op.fresh if fixed and not live else ():
                self._write(made, torch.full((), float(fixed[0]), device=made.device))

    def _alone(self, op: Operation, part: Tensor) -> None:
        """Label the result of an operation on a single tensor with channels."""
        labels, dims, arguments = compact(part), part.dim(), op.named
        if any(a.name == "keepdim" for a in op.func._schema.arguments):
            given = arguments.get("dim")
            reduced = {d % dims for d in ([given] if isinstance(given, int) else given or range(dims))}
            if any(labels.shape[d] > 1 for d in reduced):
                self._lost(part, op.name)
                return
            if not arguments.get("keepdim"):
                for d in sorted(reduced, reverse=True):
                    labels = labels.squeeze(d)
        elif isinstance(along := arguments.get("dim"), int) and labels.shape[along] > 1:
            self._lost(part, op.name)  # such as a softmax over channels; its result has channels nonetheless
        for made in op.fresh:
            fits = labels.dim() == made.dim() and all(
                here in (1, there) for here, there in zip(labels.shape, made.shape, strict=True)
            )
            if fits:
                self._write(made, labels)
            else:
                self._lost(part, op.name)

    def _lost(self, part: Tensor, name: str) -> None:
        self._follower.labels.note(channels_in(part), name)

    def enter(self, call: Call) -> None:
        """Before a layer computes."""
        self._inside += 1

    def leave(self, call: Call) -> None:
        """Label the output of a layer."""
        self._inside -= 1
        x, y, name = call.input, call.output, call.name
        if self._inside or not isinstance(y, Tensor) or not isinstance(x, Tensor) or not x.numel():
            return  # an empty batch, such as that of a head without detections, tells nothing
        if isinstance(call.module, nn.BatchNorm1d | nn.BatchNorm2d):
            maker, shape = self._makers.get(storage_key(x), (None, None))
            direct = maker is not None and shape == x.shape
            self._sources.setdefault(name, []).append(maker if direct else None)
            self._reads(x, name if direct else None)
        else:
            self._reads(x, None)
        self._calls[name] = self._calls.get(name, 0) + 1
        self._write(y, self._follower.layer(call.module, x, self._labels(x), y))
        self._makers[storage_key(y)] = (name, y.shape)

    def _reads(self, tensor: Tensor, reader: str | None) -> None:
        key = storage_key(tensor)
        if key in self._makers:
            self._readers.setdefault(self._makers[key][0], []).append(reader)
        owned = self._follower.fixed.get(key) or self._follower.bare_reasons.get(key)
        if owned is not None:
            self._follower.called.add(owned[1])

    def _labels(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor, in its shape: a view of those of its storage."""
        key = storage_key(tensor)
        if key in self._held:
            labels = self._held[key][1]
            if labels.numel() >= _extent(tensor):
                return labels.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        label = self._follower.fixed.get(key, (0, ""))[0]
        return torch.full((), float(label), device=tensor.device).expand(tensor.shape)

    def _own(self, tensor: Tensor) -> None:
        """The label array of a tensor's storage."""
        if storage_key(tensor) not in self._held:
            storage = tensor.untyped_storage()
            room = torch.zeros(storage.nbytes() // tensor.element_size(), device=tensor.device)
            self._held[storage_key(tensor)] = (storage, room)

    def _write(self, tensor: Tensor, labels: Tensor) -> None:
        """Label a tensor; labels are broadcast to its shape."""
        if tensor.layout != torch.strided or storage_key(tensor) in self._follower.fixed or not tensor.numel():
            return
        if storage_key(tensor) not in self._held and not labels.any():
            return
        self._own(tensor)
        with torch.no_grad():
            self._labels(tensor).copy_(labels.clone())  # they may be a view of the target


def _extent(tensor: Tensor) -> int:
    """The number of storage elements that a tensor spans."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset() + sum((n - 1) * step for n, step in steps) + 1) if tensor.numel() else 0


def _first(labels: Tensor, dim: int) -> Tensor:
    return labels.narrow(dim, 0, 1)


def _is_written(func: Any, i: int) -> bool:
    alias = func._schema.arguments[i].alias_info if i < len(func._schema.arguments) else None
    return alias is not None and alias.is_write


def _holds_data(x: object, dtype: torch.dtype) -> bool:
    """Whether a tensor argument holds the data to move, rather than indices."""
    return isinstance(x, Tensor) and (x.dtype == dtype or x.is_floating_point())
