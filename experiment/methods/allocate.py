"""How one budget is shared among layers: exact searches over finite lists of options, no root finding, no restarts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def minimise_maximum(errors: Sequence[Floats], costs: Sequence[Integers], limit: int) -> list[int]:
    """The option of every layer that minimises the largest error of all layers, then the second largest, and so on.

    min over i_1..i_L of max_l errors[l][i_l]  subject to  sum_l costs[l][i_l] <= limit.

    The objective is a maximum and the constraint a sum, so for a given eps every layer takes its cheapest option with
    an error of at most eps, and the smallest feasible eps, one of the finitely many errors, is the global optimum. What
    is left of the budget then improves the worst layer that can still be improved (lexicographic; equal errors go by
    layer order).

    Args:
        errors: for every layer (number of options,), in any order.
        costs: for every layer (number of options,), non-negative.
        limit: at least `smallest(costs)`.

    Returns: for every layer the index of its option.
    """
    fronts = [front(error, cost) for error, cost in zip(errors, costs, strict=True)]
    steps = _Steps(
        [e[f] for e, f in zip(errors, fronts, strict=True)], [c[f] for c, f in zip(costs, fronts, strict=True)]
    )
    taken = steps.longest_prefix(limit)
    chosen = steps.positions(taken)
    slack = limit - steps.spent(taken)
    stuck = [False] * len(chosen)
    for layer, increase in zip(steps.layer[taken:].tolist(), steps.increase[taken:].tolist(), strict=True):
        if stuck[layer]:
            continue
        if increase > slack:  # the worst layer cannot get better: it stays, the next worst may still
            stuck[layer] = True
        else:
            slack -= increase
            chosen[layer] += 1
    return [int(options[i]) for options, i in zip(fronts, chosen, strict=True)]


def common_threshold(curves: Sequence[Floats], costs: Sequence[Integers], limit: int) -> list[int]:
    """The option of every layer under one common threshold, the lowest that the limit allows.

    With threshold t, layer l takes its first option whose curve value is at most t. The total cost is a step function
    of t whose breakpoints are the curve values: they are sorted and the longest affordable prefix is taken; equal
    values go by layer order, one at a time.

    Args:
        curves: for every layer (number of options,), non-increasing.
        costs: for every layer (number of options,), non-decreasing.
        limit: at least `smallest(costs)`.

    Returns: for every layer the index of its option.
    """
    steps = _Steps(curves, costs)
    return steps.positions(steps.longest_prefix(limit))


def minimise_sum(losses: Sequence[Floats], costs: Sequence[Integers], limit: int) -> list[int]:
    """The option of every layer that makes the sum of all layers' losses small within the limit.

    Every layer walks down the lower convex hull of its (cost, loss) points, and of all layers' next steps the one that
    saves most loss per cost comes first: for the costs that are met on the way this is the optimum (one Lagrange
    multiplier). What is left of the limit goes, again by loss per cost, to any options that fit.

    Args:
        losses: for every layer (number of options,), finite, in any order.
        costs: for every layer (number of options,), non-negative.
        limit: at least `smallest(costs)`.

    Returns: for every layer the index of its option.
    """
    hulls = [_hull(loss, cost) for loss, cost in zip(losses, costs, strict=True)]
    dear = [cost[hull] for cost, hull in zip(costs, hulls, strict=True)]
    lost = [loss[hull] for loss, hull in zip(losses, hulls, strict=True)]
    saved = [np.append(-np.diff(a) / np.diff(b), 0.0) for a, b in zip(lost, dear, strict=True)]  # by the next step
    saved = [np.minimum.accumulate(own) for own in saved]  # as the hull has it: rounding must not swap a layer's steps
    steps = _Steps(saved, dear)
    taken = steps.longest_prefix(limit)
    chosen = [int(hull[i]) for hull, i in zip(hulls, steps.positions(taken), strict=True)]
    _spend(losses, costs, chosen, limit - steps.spent(taken))
    return chosen


def _spend(losses: Sequence[Floats], costs: Sequence[Integers], chosen: list[int], slack: int) -> None:
    """Improve `chosen`, in place, by the exchange within the slack that saves most per cost, until there is none."""
    if not costs:
        return
    layer = np.repeat(np.arange(len(costs)), [len(cost) for cost in costs])
    option = np.concatenate([np.arange(len(cost)) for cost in costs])
    loss, cost = np.concatenate(losses), np.concatenate(costs)
    first = np.searchsorted(layer, np.arange(len(costs)))
    while True:
        now = first + np.array(chosen)
        saved, more = loss[now][layer] - loss, cost - cost[now][layer]
        fits = (saved > 0) & (more <= slack)
        if not fits.any():
            return
        best = int(np.where(fits, saved / np.maximum(more, 0.5), -1.0).argmax())
        chosen[layer[best]] = int(option[best])
        slack -= int(more[best])


def _hull(loss: Floats, cost: Integers) -> Integers:
    """The options on the lower convex hull of (cost, loss): costs rising, losses falling, ever more slowly."""
    kept: list[int] = []
    for i in front(loss, cost).tolist():
        while len(kept) > 1 and (
            (loss[kept[-2]] - loss[kept[-1]]) * (cost[i] - cost[kept[-1]])
            <= (loss[kept[-1]] - loss[i]) * (cost[kept[-1]] - cost[kept[-2]])
        ):
            kept.pop()
        kept.append(i)
    return np.array(kept, dtype=np.int64)


def smallest(costs: Sequence[Integers]) -> int:
    """The least that all layers together can cost."""
    return sum(int(cost.min()) for cost in costs)


def front(error: Floats, cost: Integers) -> Integers:
    """The options that no other one beats in both: costs strictly rising, errors strictly falling."""
    order = np.lexsort((error, cost))
    lowest = np.minimum.accumulate(error[order])
    better = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    found: Integers = order[better]
    return found


class _Steps:
    """Every layer's steps from one option to the next, those away from the largest errors first."""

    def __init__(self, curves: Sequence[Floats], costs: Sequence[Integers]) -> None:
        self.num_layers = len(costs)
        self.base = sum(int(cost[0]) for cost in costs)
        sizes = [len(cost) - 1 for cost in costs]
        layer = np.repeat(np.arange(len(costs)), sizes)
        before = np.concatenate([np.zeros(0), *(curve[:-1] for curve in curves)])
        increase = np.concatenate([np.zeros(0, np.int64), *(np.diff(cost) for cost in costs)])
        order = np.argsort(-before, kind="stable")  # stable: equal errors in layer order, a layer's own steps in theirs
        self.layer, self.increase = layer[order], increase[order]
        self.total = np.cumsum(self.increase) + self.base

    def longest_prefix(self, limit: int) -> int:
        """How many steps the limit pays for.

        Raises: ValueError: not even the first options.
        """
        if self.base > limit:
            raise ValueError(f"the limit must be at least {self.base}, the cost of the first options. Got {limit}.")
        return int(np.searchsorted(self.total, limit, side="right"))

    def spent(self, taken: int) -> int:
        return int(self.total[taken - 1]) if taken else self.base

    def positions(self, taken: int) -> list[int]:
        """The option that every layer has reached."""
        counts: list[int] = np.bincount(self.layer[:taken], minlength=self.num_layers).tolist()
        return counts
