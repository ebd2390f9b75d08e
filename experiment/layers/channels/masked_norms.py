"""Normalisation over the channels that are left: LayerNorm, RMSNorm and the like in a masked network."""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiment.layers.channels.channel_axes import LAYER_NORMS, channel_dim


@dataclass(frozen=True)
class OverKept:
    """A forward hook: what the module computes on the channels that are left; the others are zero.

    Statistics over zeros would differ from those of the sliced network.
    """

    indices: tuple[int, ...]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The output, by the module's present parameters."""
        x, dim = args[0], channel_dim(module, args[0])
        places = torch.tensor(self.indices, device=x.device)
        part = _without(module, places)(x.index_select(dim, places))
        return torch.zeros_like(output).index_copy(dim, places, part)


def normalise_over(module: nn.Module, indices: tuple[int, ...]) -> None:
    """Make a module, in place, normalise over these channels only."""
    normalise_over_all(module)
    module.register_forward_hook(OverKept(indices))


def normalise_over_all(module: nn.Module) -> None:
    """Undo `normalise_over`, in place."""
    hooks = module._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, OverKept)]:
        del hooks[key]


def _without(module: nn.Module, places: Tensor) -> nn.Module:
    """The module with the parameters and buffers at these places only, for one call."""
    small = copy.copy(module)
    small._parameters = {
        n: None if p is None else nn.Parameter(p[places], False) for n, p in module._parameters.items()
    }
    if not isinstance(small, LAYER_NORMS):
        small._buffers = {n: None if b is None else b[places] for n, b in module._buffers.items()}
    small._forward_hooks, small._forward_pre_hooks = OrderedDict(), OrderedDict()
    if isinstance(small, LAYER_NORMS):
        small.normalized_shape = (len(places),)
    return small
