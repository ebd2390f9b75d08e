"""The same share of every group's channels: how many each keeps, so that the network is the largest under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiment.errors import InfeasibleBudget
from experiment.methods.base import Budget


def largest_share(
    alive: Sequence[int], free: Sequence[bool], size: Callable[[Sequence[int]], int], budget: Budget
) -> list[int]:
    """Counts n' = max(1, round(rho n)) of one share rho for all groups, the largest whose size fits.

    As rho grows, the counts grow in steps of one channel, a group's k-th at rho = (k - 1/2) / n; groups of equal n step
    together. Of the first step that does not fit as a whole, groups take theirs one after the other as long as it fits.
    So no group could take its part of that step in addition, and a larger budget never gives a smaller network.

    Args:
        alive: n, the channels that each group has left.
        free: whether a group may lose any; one that may not keeps all that it has.
        size: the network's size for given counts, in the budget's quantity; never falling in any count.
    Raises: InfeasibleBudget: one channel a group is already more than the budget.
    """
    smallest = [min(n, 1) if may else n for n, may in zip(alive, free, strict=True)]
    if size(smallest) > budget.limit:
        raise InfeasibleBudget(
            limit=budget.limit, smallest=size(smallest), original=budget.original, quantity=budget.quantity
        )
    steps = sorted(
        ((2 * k - 1) / (2 * n), group)
        for group, (n, may) in enumerate(zip(alive, free, strict=True))
        if may
        for k in range(2, n + 1)
    )

    def after(num_steps: int) -> list[int]:
        counts = list(smallest)
        for _, group in steps[:num_steps]:
            counts[group] += 1
        return counts

    fits, too_many = 0, len(steps) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if size(after(middle)) <= budget.limit else (fits, middle)
    counts = after(fits)
    for share, group in steps[fits + 1 :]:
        if share != steps[fits][0]:
            break
        counts[group] += 1
        if size(counts) > budget.limit:
            counts[group] -= 1
    return counts
