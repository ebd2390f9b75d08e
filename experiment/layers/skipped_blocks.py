"""What stands in for removed blocks: the identity for y = x + f(x), and zeros for the modules of a branch f.

One in which attention fills a cache of keys keeps doing so, with zeros of one channel, since the length of the first
layer's keys tells a network that generates how many tokens there were.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Skipped(nn.Identity):
    """A block that returns its first tensor, whatever else it is called with.

    Other modules may read its plain attributes, such as `batch_first`; where the block has tensors, they find None.

    Args:
        block: the module that it replaces.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        plain = {name: value for name, value in vars(block).items() if isinstance(value, bool | int | float | str)}
        properties = (
            name for kind in type(block).__mro__ for name, value in vars(kind).items() if type(value) is property
        )
        vars(self).update(dict.fromkeys([*block._parameters, *block._buffers, *properties]) | plain)
        for name, child in block.named_children():
            self.add_module(name, Skipped(child))
        self.layer_idx = next((vars(m)["layer_idx"] for m in block.modules() if "layer_idx" in vars(m)), None)

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """The first tensor among the arguments."""
        x = first_tensor(args, named)
        if named.get("key_value_states") is None:  # else it is attention to another sequence, which others count
            _fill((*args, *named.values()), x, self.layer_idx)
        return x


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


def _fill(arguments: Iterable[Any], x: Tensor, layer: int | None) -> None:
    """Append to the cache among the arguments, whatever its keyword, as many keys as there are tokens."""
    cache = next((a for a in arguments if hasattr(a, "update") and hasattr(a, "get_seq_length")), None)
    if layer is None or cache is None:
        return
    cache = getattr(cache, "self_attention_cache", cache)
    entry = dict(enumerate(getattr(cache, "layers", ()))).get(layer)
    if entry is None or hasattr(entry, "update"):  # else it counts no tokens, as for linear attention
        held = getattr(entry, "keys", None)
        heads, size = (held.shape[1], held.shape[3]) if isinstance(held, Tensor) and held.dim() == 4 else (1, 1)
        keys = x.new_zeros(len(x), heads, x.shape[1], size)
        cache.update(keys, keys, layer)
