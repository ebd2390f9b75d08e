"""What a family of fused modules is: how one is recognised, and how it becomes plain layers."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """Modules that are unfused in one way. Names in tensors are relative to the module.

    Attributes:
        is_fused: whether a module can be unfused.
        is_unfused: whether it can be the result.
        unfuse: change a module, in place. Its tensors belong to others: they may be replaced, not written.
        split: the tensors of a fused module's state_dict -> those of the unfused one.
        join: the inverse of `split`.
        reshapes: whether parameters are split or transposed, so that they cannot be shared with other modules.
    """

    is_fused: Callable[[nn.Module], bool]
    is_unfused: Callable[[nn.Module], bool]
    unfuse: Callable[[nn.Module], None]
    split: Callable[[Tensors], dict[str, Tensor]] = dict
    join: Callable[[Tensors], dict[str, Tensor]] = dict
    reshapes: bool = False


def class_in(module: str, name: str) -> type[Any] | None:
    """A class of a library; None if its module is not imported, so that there are no objects of it."""
    found: type[Any] | None = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return found


def computes_as(module: nn.Module, kind: type[nn.Module] | None) -> bool:
    """Whether a module is of this class, or of a subclass with nothing of its own but a constructor."""
    if kind is None or not isinstance(module, kind) or "forward" in vars(module):
        return False
    order = type(module).__mro__
    own = {name for subclass in order[: order.index(kind)] for name in vars(subclass)}
    return not any(name in ("__call__", "__getattr__") or not name.startswith("__") for name in own)


def split_parameters(module: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    """The parameters of the unfused module, which are views of those of the fused one or the same objects."""
    with torch.enable_grad():  # a view knows then whether the parameter needs a gradient
        parts = family.split(dict(module.named_parameters()))
    return {
        name: part if isinstance(part, nn.Parameter) else nn.Parameter(part.detach(), part.requires_grad)
        for name, part in parts.items()
    }


def make_linear(weight: nn.Parameter, bias: nn.Parameter | None, training: bool) -> nn.Linear:
    """A linear layer of these parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta").train(training)
    layer.weight = weight
    layer.register_parameter("bias", bias)
    return layer
