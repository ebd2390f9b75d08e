"""What stands in for removed blocks: the identity for y = x + f(x), and zeros for a branch f whose output is added.

One in which attention fills a cache of keys keeps doing so, with zeros of one channel, since the length of the first
layer's keys tells a network that generates how many tokens there were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Skipped(nn.Identity):
    """A block that returns its first tensor, whatever else it is called with.

    Args:
        block: the module that it replaces.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.layer_idx = next((vars(m)["layer_idx"] for m in block.modules() if "layer_idx" in vars(m)), None)

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """The first tensor among the arguments."""
        _fill(named.get("past_key_values"), first_tensor(args, named), self.layer_idx)
        return first_tensor(args, named)


class ZeroBranch(Skipped):
    """A branch that returns zeros in the form of its first tensor.

    Args:
        branch: the module that it replaces.
        outputs: 0 for a tensor, else the length of a tuple of which the others are None, as attention returns.
    """

    def __init__(self, branch: nn.Module, outputs: int) -> None:
        super().__init__(branch)
        self.outputs = outputs

    def forward(self, *args: Any, **named: Any) -> Any:
        """Zeros."""
        zeros = torch.zeros_like(super().forward(*args, **named))
        return (zeros, *[None] * (self.outputs - 1)) if self.outputs else zeros


def first_tensor(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The first tensor among the arguments of a call."""
    tensor: Tensor = next(x for x in (*args, *named.values()) if isinstance(x, Tensor))
    return tensor


def _fill(cache: Any, x: Tensor, layer: int | None) -> None:
    if layer is not None and hasattr(cache, "update"):
        keys = x.new_zeros(len(x), 1, x.shape[1], 1)
        cache.update(keys, keys, layer)
