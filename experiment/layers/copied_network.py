"""Deep copies of networks that forward passes have left computed tensors in, which `copy.deepcopy` refuses."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copied(network: nn.Module) -> nn.Module:
    """A deep copy; computed tensors in attributes, such as those of hooks and caches, are detached."""
    return copy.deepcopy(network, computed_tensors(network))


def computed_tensors(network: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy`: a detached copy of every computed tensor in attributes, also within lists."""
    values = tree_leaves([list(vars(module).values()) for module in network.modules()])
    return {id(v): v.detach().clone() for v in values if isinstance(v, Tensor) and not v.is_leaf}
