"""A forward pass taken apart: modules without submodules, and operations outside of them, each to be timed alone.

The time of a piece may be interpolated in its widths, which are numbers of channels or, for an operation on tensors of
one shape, of elements; `make` gives a piece of the same kind with other widths.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from experiment.inputs import Inputs, call_network, tensors
from experiment.layers.forward_pass import Call, evaluating, observing
from experiment.layers.grouped_linear import GroupedLinear

PLAIN = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.MaxPool2d, nn.AvgPool2d,
         nn.AdaptiveAvgPool2d)  # fmt: skip
"""Modules without parameters that treat channels alike."""


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
        made = _resized(module, widths).to(device=device, dtype=x.dtype).to(memory_format=_weight_format(module))
        return made.eval(), torch.empty(sizes, dtype=x.dtype, device=device, memory_format=_format(x)).zero_()


@dataclass
class Pieces:
    """What a forward pass consists of.

    Attributes:
        pieces: modules without submodules that take one tensor, and operations outside of them.
        containers: the number of calls of other modules.
        touched: bytes of all weights and outputs, once for every call.
    """

    pieces: list[Leaf | Operation] = field(default_factory=list)
    containers: int = 0
    touched: int = 0


def pieces(network: nn.Module, inputs: Inputs) -> Pieces:
    """Take a forward pass apart."""
    found, within = Pieces(), [0]

    class Outside(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
            output = func(*args, **(kwargs or {}))
            if not within[0] and tensors(output):
                found.pieces.append(Operation(func, args, kwargs or {}, tensors(output)[0]))
                found.touched += 0 if func.is_view else sum(t.nbytes for t in tensors(output))
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
            looked_up = isinstance(call.module, nn.Embedding)  # a few rows are read
            weights = () if looked_up else call.module.parameters()
            found.touched += sum(t.nbytes for t in (*weights, *tensors(call.output)))

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
        if self.function.is_view:  # whatever its size, it takes the same time
            return str(self.function)

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
    formats = {_format(x), _weight_format(module)}
    layout = "" if formats == {torch.contiguous_format} else f" {_format(x)} {_weight_format(module)}"
    return Leaf(f"{kind} {'x'.join(map(str, shape))} {x.dtype} {x.device.type}{layout}", widths, module, x)


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


def _weight_format(module: nn.Module) -> torch.memory_format:
    """The format of a module's weights, which decides beside that of its input what its kernel has to convert."""
    return next((_format(p) for p in module.parameters() if p.dim() == 4), torch.contiguous_format)


def _format(x: Tensor) -> torch.memory_format:
    """The memory format that strides tell, also where those of images with one pixel fit both."""
    last = x.dim() == 4 and x.stride(1) == 1 and x.stride(3) == x.shape[1]
    return torch.channels_last if last else torch.contiguous_format
