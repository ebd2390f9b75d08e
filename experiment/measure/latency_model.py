"""Milliseconds of networks that were never run: those of their layers, measured once and interpolated between widths.

The time of a network is the sum of its leaf modules' times and a rest: sums, reshapes, products of activations, Python.
A leaf module is measured alone, at a few widths around its own; `LatencyTable` keeps the measurements in a file.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from experiment.errors import StoreError
from experiment.escaping import json_text
from experiment.files import read_json, write_whole
from experiment.inputs import Inputs, batch_size, call_network, device_of, moved, tensors
from experiment.layers.compressible import LayerInfo
from experiment.layers.factored_layers import make_layer
from experiment.layers.forms import Forms
from experiment.layers.forward_pass import Call, evaluating, observing
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import bake_masks
from experiment.layers.plan import Factors
from experiment.measure.latency import Layout, arranged_in, layouts, repeated, timed

Integers = NDArray[np.int64]
FORMAT = 1  # of the file
SECONDS = 0.02  # for one layer
STEPS = 4  # measured widths between a power of two and the next
ROUNDS, ROUND = 5, 0.08  # of a comparison of two networks, and its seconds
PLAIN = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.MaxPool2d, nn.AvgPool2d,
         nn.AdaptiveAvgPool2d)  # fmt: skip
"""Modules without parameters that treat channels alike."""


class LatencyTable:
    """Milliseconds of single layers on one device with one number of threads, measured when they are first asked for.

        table = LatencyTable(Path("latency.json"), threads=1)

    Args:
        path: where the measurements are kept; None to keep them in memory.
    """

    def __init__(self, path: Path | None, threads: int) -> None:
        self.path, self.threads = path, threads
        self.found: dict[str, float] = {}
        self._kept = 0
        if path is not None and path.is_file():
            try:
                content = read_json(path)
            except StoreError:  # damaged: measure again
                content = None
            if isinstance(content, dict) and content.get("format") == FORMAT:
                self.found = {k: float(v) for k, v in dict(content["milliseconds"]).items()}
                self._kept = len(self.found)

    def time(self, layer: Leaf | Operation) -> float:
        """Milliseconds of a layer: linear between the widths at which it is measured."""
        around = [_around(width) for width in layer.widths]
        total = 0.0
        for corner in itertools.product(*around):
            share = math.prod(part for _, part in corner)
            if share:
                total += share * self._at(layer, tuple(width for width, _ in corner))
        return total

    def sum(self, forward: Pieces) -> float:
        """Milliseconds of all pieces of a forward pass; new measurements are kept."""
        once = self.time(Leaf("call", (), nn.Identity(), torch.zeros(1)))  # Python's part of calling a module
        found = sum(self.time(piece) for piece in forward.pieces) + once * forward.containers
        self.keep()
        return found

    def keep(self) -> None:
        """Write new measurements to the file."""
        if self.path is not None and len(self.found) > self._kept:
            write_whole(self.path, json_text({"format": FORMAT, "milliseconds": self.found}, indent=1) + "\n")
            self._kept = len(self.found)

    def _at(self, layer: Leaf | Operation, widths: tuple[int, ...]) -> float:
        key = f"{layer.kind} {'x'.join(map(str, widths))}"
        if key not in self.found:
            module, x = layer.make(widths)
            for parameter in module.parameters() if isinstance(module, nn.Module) else ():
                nn.init.constant_(parameter, 1e-3)  # what uninitialised memory holds may be slow to compute with
            self.found[key] = _milliseconds(module, x, self.threads, SECONDS)
        return self.found[key]


@dataclass(frozen=True)
class Leaf:
    """A call of a module without submodules.

    Attributes:
        kind: everything that determines its time beside the widths.
        widths: numbers of channels, in which its time is interpolated.
    """

    kind: str
    widths: tuple[int, ...]
    module: nn.Module
    x: Tensor

    def make(self, widths: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
        """A module of the same kind with other widths, and its input."""
        module, x, device = self.module, self.x, self.x.device
        if widths == self.widths:
            return copy.deepcopy(module).eval(), x.clone()
        sizes, dim = list(x.shape), _channel_dim(module, x)
        sizes[dim] = widths[0] * _fixed(module)
        made = _resized(module, widths).to(device=device, dtype=x.dtype).eval()
        values = torch.zeros(sizes, dtype=x.dtype, device=device)
        return made, _like(values, x)


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the milliseconds of compressed forms of one network, and measures them beside it.

    Attributes:
        dense: the network itself, without masks; inputs: a batch. Both in the layout that is faster.
        dense_ms: its measured milliseconds.
        rest_ms: those that its pieces do not explain, for each byte that they write: alone, they find their memory in
            the caches.
    """

    dense: nn.Module
    inputs: Inputs
    table: LatencyTable
    layout: Layout
    dense_ms: float
    rest_ms: float

    @staticmethod
    def of(network: nn.Module, example: Inputs, batch: int, table: LatencyTable) -> LatencyModel:
        """Measure a network and its layers.

        Args:
            example: a batch of inputs, whose first sample is repeated.
            batch: samples per forward pass.
        """
        network = bake_masks(network).eval()
        x = repeated(network, example, batch)
        found: list[tuple[float, Layout, nn.Module, Inputs]] = []
        for layout in layouts(network, x):
            turned, inputs = arranged_in(layout, network, x)
            found.append((_milliseconds(turned, inputs, table.threads, ROUNDS * ROUND), layout, turned, inputs))
        dense_ms, layout, turned, inputs = min(found, key=lambda one: one[0])
        whole = pieces(turned, inputs)
        rest = dense_ms - table.sum(whole)
        return LatencyModel(turned, inputs, table, layout, dense_ms, rest / whole.written)

    def predict(self, network: nn.Module) -> float:
        """Milliseconds of a compressed form of the network."""
        turned, inputs = arranged_in(self.layout, bake_masks(network).eval(), self.inputs)
        found = pieces(turned, inputs)
        return max(self.table.sum(found) + self.rest_ms * found.written, 1e-6)

    def price(self, info: LayerInfo, layer: nn.Module, forms: Forms) -> Integers:
        """Nanoseconds of a layer's forms: of their factors or, masked and rounded or not, of the layer itself."""
        ranks, groups, foldings = forms.ranks, forms.groups, forms.foldings
        found = np.zeros(len(forms))
        for k, folding in sorted({*zip(groups.tolist(), foldings.tolist(), strict=True)}):
            here = np.flatnonzero((groups == k) & (foldings == folding) & (ranks > 0))
            if len(here):
                at = _some(int(ranks[here].max()))
                times = [self._layer(info, make_layer(layer, Factors(rank, k, folding))) for rank in at]
                found[here] = np.interp(ranks[here], at, np.maximum.accumulate(times))
        found[ranks == 0] = self._layer(info, layer)
        self.table.keep()
        return np.maximum(1, np.round(found * 1e6)).astype(np.int64)

    def _layer(self, info: LayerInfo, module: nn.Module) -> float:
        """Milliseconds of all calls of a module in the place of a layer."""
        total, batch = 0.0, batch_size(self.inputs)
        for grid in info.input_grids:
            shape = (batch, info.in_features, *grid) if info.kind == "conv" else (batch * grid[0], info.in_features)
            if info.kind == "embedding":
                x: Tensor = torch.zeros(batch, grid[0], dtype=torch.int64)
            else:
                x = torch.zeros(shape)
            built, inputs = arranged_in(self.layout if len(shape) == 4 else "contiguous", module, x)
            whole = pieces(built.to(device_of(self.inputs)), moved(inputs, device_of(self.inputs)))
            total += self.table.sum(whole) + self.rest_ms * whole.written
        return total

    def measure(self, network: nn.Module) -> float:
        """Milliseconds of a compressed form, measured in turns with the network itself: what slows both cancels."""
        turned, inputs = arranged_in(self.layout, bake_masks(network).eval(), self.inputs)
        ratios = []
        for _ in range(ROUNDS):
            pair = [_milliseconds(net, inputs, self.table.threads, ROUND) for net in (self.dense, turned)]
            ratios.append(pair[1] / pair[0])
        return float(np.median(ratios)) * self.dense_ms


@dataclass
class Pieces:
    """What a forward pass consists of.

    Attributes:
        pieces: modules without submodules that take one tensor, and operations outside of them.
        containers: the number of calls of other modules.
        written: bytes of all outputs.
    """

    pieces: list[Leaf | Operation] = field(default_factory=list)
    containers: int = 0
    written: int = 0


def pieces(network: nn.Module, inputs: Inputs) -> Pieces:
    """Take a forward pass apart. Views are left out."""
    found, within = Pieces(), [0]

    class Outside(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
            output = func(*args, **(kwargs or {}))
            if not within[0] and not func.is_view and isinstance(output, Tensor):
                found.pieces.append(Operation(func, args, kwargs or {}, output))
                found.written += output.nbytes
            return output

    outside = Outside()  # type: ignore[no-untyped-call]

    def enter(call: Call) -> None:
        if any(call.module.children()):
            found.containers += 1
            return
        if not within[0] and len(tensors(call.args)) == 1 and isinstance(call.args[0], Tensor) and not call.named:
            found.pieces.append(_leaf(call.module, call.args[0]))
        within[0] += 1

    def leave(call: Call) -> None:
        if not any(call.module.children()):
            within[0] -= 1
            found.written += sum(t.nbytes for t in tensors(call.output))

    with observing(dict(network.named_modules()), before=enter, after=leave), evaluating(network), outside:
        call_network(network, inputs)
    return found


@dataclass(frozen=True)
class Operation:
    """An operation outside of modules without submodules, such as a sum of branches."""

    function: Any
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Tensor

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of elements, if all tensors have the same."""
        same = {t.shape for t in (*tensors(self.args), self.output)}
        return (self.output.numel(),) if len(same) == 1 and torch.Tag.pointwise in self.function.tags else ()

    @property
    def kind(self) -> str:
        def word(value: object) -> object:
            if isinstance(value, Tensor):
                return ("x".join(map(str, value.shape)) if not self.widths else "n", str(value.dtype))
            return [word(v) for v in value] if isinstance(value, list | tuple) else str(value)

        return f"{self.function} {word(self.args)} {self.output.device.type}"

    def make(self, widths: tuple[int, ...]) -> tuple[Any, Any]:
        """A function that does the same to tensors with so many elements, and its arguments."""

        def resized(value: Any) -> Any:
            changes = widths and isinstance(value, Tensor)
            return torch.zeros(widths, dtype=value.dtype, device=value.device) if changes else value

        return partial(self.function, **self.named), tree_map(resized, self.args)


def _leaf(module: nn.Module, x: Tensor) -> Leaf:
    widths = _widths(module, x)
    shape: list[object] = list(x.shape)
    kind = type(module).__name__
    if widths:
        shape[_channel_dim(module, x)] = "c"
        kind = f"{kind}({_constant(module)})"
    else:
        kind = f"{kind}({module.extra_repr()})"
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return Leaf(f"{kind} {'x'.join(map(str, shape))} {x.dtype} {x.device.type}{' channels_last' if last else ''}",
                widths, module, x)  # fmt: skip


def _widths(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    """The numbers of channels in which the time of a module may be interpolated: none where it must be exact."""
    if isinstance(module, _ConvNd) and not module.transposed:
        a, b = module.in_channels // module.groups, module.out_channels // module.groups
        return (module.groups,) if a == b == 1 else (a, b)
    if isinstance(module, GroupedLinear):
        return module.in_features // module.groups, module.out_features // module.groups
    if type(module) is nn.Linear:
        return module.in_features, module.out_features
    if isinstance(module, _BatchNorm) or type(module) in PLAIN or (type(module) is nn.LayerNorm and
                                                                   len(module.normalized_shape) == 1):  # fmt: skip
        return (x.shape[_channel_dim(module, x)],)
    return ()


def _fixed(module: nn.Module) -> int:
    """Input channels for one unit of the first width."""
    depthwise = isinstance(module, _ConvNd) and module.in_channels == module.groups == module.out_channels
    return 1 if depthwise else int(getattr(module, "groups", 1))


def _channel_dim(module: nn.Module, x: Tensor) -> int:
    if isinstance(module, nn.Linear | GroupedLinear | nn.LayerNorm):
        return x.dim() - 1
    if isinstance(module, _ConvNd):
        return x.dim() - 1 - len(module.kernel_size)
    return 1 if x.dim() in (2, 4, 5) or isinstance(module, _BatchNorm) else x.dim() - 1


def _constant(module: nn.Module) -> str:
    """What stays when the widths change."""
    if isinstance(module, _ConvNd):
        depthwise = module.in_channels == module.groups == module.out_channels
        groups = "all" if depthwise and module.groups > 1 else module.groups
        return (f"{module.kernel_size} {module.stride} {module.padding} {module.dilation} {groups} "
                f"{module.padding_mode} {module.bias is not None}")  # fmt: skip
    if isinstance(module, GroupedLinear):
        return str(module.groups)
    if isinstance(module, nn.Linear):
        return str(module.bias is not None)
    if isinstance(module, _BatchNorm | nn.LayerNorm):
        return str(any(True for _ in module.parameters()))
    return module.extra_repr()


def _resized(module: nn.Module, widths: tuple[int, ...]) -> nn.Module:
    if isinstance(module, _ConvNd):
        depthwise = len(widths) == 1
        groups = widths[0] if depthwise else module.groups
        a, b = (widths[0], widths[0]) if depthwise else (widths[0] * groups, widths[1] * groups)
        kind: Any = type(module)
        made: nn.Module = kind(a, b, module.kernel_size, module.stride, module.padding, module.dilation, groups,
                               module.bias is not None, module.padding_mode)  # fmt: skip
        return made
    if isinstance(module, GroupedLinear):
        return GroupedLinear(widths[0] * module.groups, widths[1] * module.groups, module.groups)
    if isinstance(module, nn.Linear):
        return nn.Linear(widths[0], widths[1], bias=module.bias is not None)
    if isinstance(module, nn.LayerNorm):
        return nn.LayerNorm(widths[0], module.eps, module.elementwise_affine)
    if isinstance(module, _BatchNorm):
        norm: Any = type(module)
        normed: nn.Module = norm(widths[0], affine=module.affine)
        return normed
    return copy.deepcopy(module)


def _like(values: Tensor, x: Tensor) -> Tensor:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return values.contiguous(memory_format=torch.channels_last) if last else values


def _some(top: int) -> list[int]:
    """The ranks up to `top` at which factors are measured: powers of two and the last."""
    return sorted({*(2**i for i in range(top.bit_length())), top})


def _around(width: int) -> list[tuple[int, float]]:
    """The measured widths around a width, with its shares of both."""
    step = max(1, 2 ** (width.bit_length() - 1) // STEPS)
    low = width // step * step
    return [(low, 1.0)] if low == width else [(low, 1 - (width - low) / step), (low + step, (width - low) / step)]


def _milliseconds(network: nn.Module, x: Inputs, threads: int, seconds: float) -> float:
    return min(timed(network, x, threads, seconds).times) * 1e3  # what else the machine does only adds
