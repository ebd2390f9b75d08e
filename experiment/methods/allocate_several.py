"""Allocation of several budgets to layers at once, exact: mixed-integer programs, solved by HiGHS.

Source: Huangfu, Hall 2018, https://doi.org/10.1007/s12532-017-0130-5, through `scipy.optimize.milp`
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from experiment.standard_streams import without_stdout

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
MIXTURES = 33
GAP = 1e-3  # relative to the optimum, at which the solver stops
NODES = 1000  # after which it gives the best that it has found; a limit on time would make plans depend on the machine


def least_sum(losses: Sequence[Floats], costs: Sequence[Integers], limits: Sequence[int]) -> list[int] | None:
    """The options with the smallest sum of losses within all limits; None if no options are within them.

    min over i_1..i_L of sum_l losses[l][i_l]  subject to  sum_l costs[l][c, i_l] <= limits[c] for all c.

    Args:
        losses: for every layer (number of options,); infinite for an option that must not be taken.
        costs: for every layer (number of limits, number of options).
    Returns: for every layer the index of its option.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes a while, for several limits only
    from scipy.sparse import csr_array

    if not losses:
        return []
    kept = [_worth_taking(loss, cost) for loss, cost in zip(losses, costs, strict=True)]
    if any(not len(options) for options in kept):
        return None
    loss = np.concatenate([own[options] for own, options in zip(losses, kept, strict=True)])
    cost = np.concatenate([own[:, options] for own, options in zip(costs, kept, strict=True)], axis=1)
    sizes = [len(options) for options in kept]
    layer = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(sizes), len(layer)))
    scale = np.maximum(np.abs(np.asarray(limits, dtype=np.float64)), 1.0)
    least = np.abs(loss).max() or 1.0
    with without_stdout():  # HiGHS prints notes on itself
        found = milp(
            loss / least,
            integrality=np.ones(len(loss)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(cost / scale[:, None], -np.inf, np.asarray(limits) / scale),
            ],
            options={"mip_rel_gap": GAP, "node_limit": NODES},
        )
    if found.x is None:
        return None
    firsts = np.cumsum([0, *sizes])
    chosen = [int(options[found.x[a : a + len(options)].argmax()]) for a, options in zip(firsts, kept, strict=False)]
    total = sum(own[:, i] for own, i in zip(costs, chosen, strict=True))
    return chosen if (total <= np.asarray(limits)).all() else _repaired(losses, costs, chosen, limits)


def least_maximum(errors: Sequence[Floats], costs: Sequence[Integers], limits: Sequence[int]) -> list[int] | None:
    """The options with the smallest largest error within all limits and, under it, the smallest sum of errors.

    Whether options with errors up to a level fit is decided by trading the costs at MIXTURES prices, so the level may
    be slightly above the optimum. Arguments and result as for `least_sum`.
    """
    levels = np.unique(np.concatenate([*errors, np.zeros(1)]))
    found = bisect.bisect_left(range(len(levels)), True, key=lambda i: _fits(errors, costs, limits, float(levels[i])))
    if found == len(levels):
        return least_sum(errors, costs, limits)
    allowed = [np.where(error <= levels[found], error, np.inf) for error in errors]
    return least_sum(allowed, costs, limits)


def _fits(errors: Sequence[Floats], costs: Sequence[Integers], limits: Sequence[int], level: float) -> bool:
    """Whether options with errors up to a level are found within all limits."""
    bound = np.asarray(limits, dtype=np.float64)
    shares = [
        cost[:, error <= level] / np.maximum(bound, 1)[:, None] for error, cost in zip(errors, costs, strict=True)
    ]
    if any(not share.shape[1] for share in shares):
        return False
    for weights in _mixtures(len(limits)):
        total = np.sum([share[:, (weights @ share).argmin()] for share in shares], axis=0)
        if np.all(total <= 1):
            return True
    return False


def _mixtures(number: int) -> Iterator[Floats]:
    """Weights that sum to 1: MIXTURES steps between every two of a number of limits, and all alike."""
    yield np.full(number, 1 / number)
    for a, b in itertools.combinations(range(number), 2):
        for share in np.linspace(0, 1, MIXTURES):
            weights = np.zeros(number)
            weights[a], weights[b] = share, 1 - share
            yield weights


def _worth_taking(loss: Floats, cost: Integers) -> Integers:
    """The options that no other one beats in loss and all costs."""
    order = np.lexsort((*cost[::-1], loss))
    order = order[np.isfinite(loss[order])]
    kept: list[int] = []
    for i in order:  # by rising loss: an option must be cheaper in something than all before it
        if not any((cost[:, j] <= cost[:, i]).all() for j in kept):
            kept.append(int(i))
    return np.array(kept, dtype=np.int64)


def _repaired(
    losses: Sequence[Floats], costs: Sequence[Integers], chosen: list[int], limits: Sequence[int]
) -> list[int] | None:
    """The solver allows for rounding: exchange options, the least loss first, until the limits hold exactly."""
    chosen, bound = list(chosen), np.asarray(limits)
    for _ in range(sum(map(len, losses))):
        total = sum(own[:, i] for own, i in zip(costs, chosen, strict=True))
        over = total > bound
        if not over.any():
            return chosen
        exchanges = [
            (losses[n][i] - losses[n][chosen[n]], n, i)
            for n, cost in enumerate(costs)
            for i in range(cost.shape[1])
            if (cost[over, i] < cost[over, chosen[n]]).all() and (cost[~over, i] <= cost[~over, chosen[n]]).all()
        ]
        if not exchanges:
            return None
        _, n, i = min(exchanges)
        chosen[n] = i
    return None
