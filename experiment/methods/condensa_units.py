"""Common parts of Condensa's schemes that mask weights or remove filters: norms of units and aligned counts."""

from collections.abc import Callable, Mapping

from torch import Tensor

Norm = Callable[[Tensor], Tensor]
"""From magnitudes (units, weights per unit) to the score of each unit (units,)."""

CRITERIA: Mapping[str, Norm] = {
    "l2norm": lambda units: units.square().sum(1).sqrt(),
    "max": lambda units: units.amax(1),
    "min": lambda units: units.amin(1),
    "mean": lambda units: units.mean(1),
    "sum": lambda units: units.sum(1),
}


def aligned(count: int, left: int, align: int) -> int:
    """A count rounded down to a multiple of `align`, but a positive count never to 0; at most `left`."""
    return count // align * align or (min(align, left) if count else 0)
