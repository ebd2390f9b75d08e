"""Allocation of budgets to layers: exact searches over finite lists of options, without restarts.

Under one limit the costs of a layer have the shape (number of options,) and the limit is a number; under several they
have the shape (limits, number of options), and all of a sequence of limits hold.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experiment.errors import InfeasibleBudget
from experiment.methods.allocate_several import least_maximum, least_sum

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Limits = int | Sequence[int]


def minimise_maximum(errors: Sequence[Floats], costs: Sequence[Integers], limit: Limits) -> list[int]:
    """The options that minimise the largest error of all layers, then the second largest, and so on.

    min over i_1..i_L of max_l errors[l][i_l]  subject to  sum_l costs[l][i_l] <= limit.

    The objective is a maximum and the constraint a sum, so for a given eps every layer takes its cheapest option with
    an error of at most eps, and the smallest feasible eps, one of the finitely many errors, is the global optimum. The
    rest of the budget improves the worst layer that can still be improved (lexicographically; ties in layer order).

    Args:
        errors: for every layer (number of options,), in any order.
        costs: for every layer (number of options,), non-negative.
        limit: at least `smallest(costs)`.

    Returns: for every layer the index of its option.
    """
    if isinstance(limit, Sequence):
        return _found(least_maximum(errors, costs, limit), limit)
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
        if increase > slack:  # this layer is unchanged; others may still improve
            stuck[layer] = True
        else:
            slack -= increase
            chosen[layer] += 1
    return [int(options[i]) for options, i in zip(fronts, chosen, strict=True)]


def common_threshold(curves: Sequence[Floats], costs: Sequence[Integers], limit: Limits) -> list[int]:
    """The options under one common threshold, the lowest that the limit allows.

    With threshold t, layer l takes its first option whose curve value is at most t. The total cost is a step function
    of t whose breakpoints are the curve values: they are sorted, and the longest affordable prefix is taken, with ties
    in layer order. A layer whose options all cost the same takes the last one.

    Args:
        curves: for every layer (number of options,), non-increasing.
        costs: for every layer (number of options,), non-decreasing.
        limit: at least `smallest(costs)`.

    Returns: for every layer the index of its option.
    """
    free = [cost.shape[-1] > 1 and bool((cost[..., 0] == cost[..., -1]).all()) for cost in costs]
    curves = [np.full(len(c), np.inf) if same else c for c, same in zip(curves, free, strict=True)]
    steps = _Steps(curves, costs)
    return steps.positions(steps.longest_prefix(limit))


def same_share(errors: Sequence[Floats], costs: Sequence[Integers], limit: Limits) -> list[int]:
    """Of every layer the option with the smallest error that costs at most the same share of the layer itself.

    Args:
        errors: for every layer (number of options,), in any order.
        costs: for every layer; the last option is the layer itself.
        limit: at least `smallest(costs)`.

    Returns: for every layer the index of its option under the largest share that the limit allows.
    """
    shares = [np.atleast_2d(cost / np.maximum(1, cost[..., -1:])).max(0) for cost in costs]
    fronts = [front(error, share) for error, share in zip(errors, shares, strict=True)]
    rising = [cost[..., best] for cost, best in zip(costs, fronts, strict=True)]
    until = [  # -share at which the next option fits
        -np.append(own[best][1:], own[best][-1]) for own, best in zip(shares, fronts, strict=True)
    ]
    chosen = common_threshold(until, rising, limit)
    return [int(best[i]) for best, i in zip(fronts, chosen, strict=True)]


def minimise_sum(losses: Sequence[Floats], costs: Sequence[Integers], limit: Limits) -> list[int]:
    """The options with a small sum of losses within the limit.

    Every layer moves along the lower convex hull of its (cost, loss) points; of all layers' next steps, the one that
    saves the most loss per cost comes first. For the total costs on this path the result is optimal (one Lagrange
    multiplier). The rest of the limit is spent greedily, again by loss per cost, on any options that fit.

    Args:
        losses: for every layer (number of options,), finite, in any order.
        costs: for every layer (number of options,), non-negative.
        limit: at least `smallest(costs)`.

    Returns: for every layer the index of its option.
    """
    if isinstance(limit, Sequence):
        chosen = _found(least_sum(losses, costs, limit), limit)
        spent = [cost[:, i] for cost, i in zip(costs, chosen, strict=True)]
        left = np.array(limit, dtype=np.int64) - np.sum(spent, axis=0, dtype=np.int64)
        _spend(losses, costs, chosen, left)  # the solver stops close to the optimum
        return chosen
    hulls = [_hull(loss, cost) for loss, cost in zip(losses, costs, strict=True)]
    hull_costs = [cost[hull] for cost, hull in zip(costs, hulls, strict=True)]
    hull_losses = [loss[hull] for loss, hull in zip(losses, hulls, strict=True)]
    saved = [
        np.append(-np.diff(a) / np.diff(b), 0.0) for a, b in zip(hull_losses, hull_costs, strict=True)
    ]  # by the next step
    saved = [np.minimum.accumulate(own) for own in saved]  # rounding must not reorder a layer's steps
    steps = _Steps(saved, hull_costs)
    taken = steps.longest_prefix(limit)
    chosen = [int(hull[i]) for hull, i in zip(hulls, steps.positions(taken), strict=True)]
    _spend(losses, [cost[None] for cost in costs], chosen, np.array([limit - steps.spent(taken)], dtype=np.int64))
    return chosen


RULES: Mapping[str, Callable[[Sequence[Floats], Sequence[Integers], Limits], list[int]]] = {
    "sum": minimise_sum,
    "minimax": minimise_maximum,
    "uniform": same_share,
}
"""What the options of all layers make best, by the name that settings give it."""


def _spend(losses: Sequence[Floats], costs: Sequence[Integers], chosen: list[int], slack: Integers) -> None:
    """Improve `chosen`, in place, by the exchange that saves the most per cost, as long as one fits into the slack.

    Args:
        costs: for every layer (limits, number of options).
        slack: (limits,): what is left of each.
    """
    if not costs:
        return
    layer = np.repeat(np.arange(len(costs)), [cost.shape[1] for cost in costs])
    option = np.concatenate([np.arange(cost.shape[1]) for cost in costs])
    loss, cost = np.concatenate(losses), np.concatenate(costs, axis=1)
    scale = np.maximum(cost.max(axis=1), 1)[:, None]
    first = np.searchsorted(layer, np.arange(len(costs)))
    while True:
        now = first + np.array(chosen)
        saved, more = loss[now][layer] - loss, cost - cost[:, now][:, layer]
        fits = (saved > 0) & (more <= slack[:, None]).all(axis=0)
        if not fits.any():
            return
        price = (np.maximum(more, 0.5) / scale).max(axis=0)
        best = int(np.where(fits, saved / price, -1.0).argmax())
        chosen[layer[best]] = int(option[best])
        slack = slack - more[:, best]


def _hull(loss: Floats, cost: Integers) -> Integers:
    """The options on the lower convex hull of (cost, loss), with rising costs."""
    kept: list[int] = []
    for i in front(loss, cost).tolist():
        while len(kept) > 1 and (
            (loss[kept[-2]] - loss[kept[-1]]) * (cost[i] - cost[kept[-1]])
            <= (loss[kept[-1]] - loss[i]) * (cost[kept[-1]] - cost[kept[-2]])
        ):
            kept.pop()
        kept.append(i)
    return np.array(kept, dtype=np.int64)


def _found(chosen: list[int] | None, limits: Sequence[int]) -> list[int]:
    """Raises: InfeasibleBudget: there are no such options."""
    if chosen is None:
        least = min(limits)
        raise InfeasibleBudget(limit=least, smallest=least + 1, original=least + 1, quantity="of several quantities")
    return chosen


def smallest(costs: Sequence[Integers]) -> int:
    """The smallest total cost of all layers."""
    return sum(int(cost.min()) for cost in costs)


def front(error: Floats, cost: Integers | Floats) -> Integers:
    """The Pareto front of the options: costs strictly rising, errors strictly falling."""
    order = np.lexsort((error, cost))
    lowest = np.minimum.accumulate(error[order])
    better = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    found: Integers = order[better]
    return found


class _Steps:
    """The steps of all layers from one option to the next, in the order of falling errors."""

    def __init__(self, curves: Sequence[Floats], costs: Sequence[Integers]) -> None:
        self.num_layers = len(costs)
        self.base = sum(cost[..., 0] for cost in costs)
        sizes = [cost.shape[-1] - 1 for cost in costs]
        layer = np.repeat(np.arange(len(costs)), sizes)
        before = np.concatenate([np.zeros(0), *(curve[:-1] for curve in curves)])
        none = costs[0][..., :0] if costs else np.zeros(0, np.int64)
        increase = np.concatenate([none, *(np.diff(cost) for cost in costs)], axis=-1)
        order = np.argsort(-before, kind="stable")  # stable: ties in layer order
        self.layer, self.increase = layer[order], increase[..., order]
        base = np.asarray(self.base)[..., None]
        self.total = np.concatenate([base, np.cumsum(self.increase, axis=-1) + base], axis=-1)

    def longest_prefix(self, limit: Limits) -> int:
        """The largest number of steps within all limits.

        Raises: ValueError: the first options already exceed a limit.
        """
        over = self.total > np.asarray(limit)[..., None]
        fits = np.asarray(~np.atleast_2d(over).any(axis=0))
        if not fits[0]:
            raise ValueError(f"the limit must be at least {self.base}, the cost of the first options. Got {limit}.")
        return int(np.flatnonzero(fits)[-1])

    def spent(self, taken: int) -> int:
        return int(self.total[taken])

    def positions(self, taken: int) -> list[int]:
        """The option that every layer has reached after these steps."""
        counts: list[int] = np.bincount(self.layer[:taken], minlength=self.num_layers).tolist()
        return counts
