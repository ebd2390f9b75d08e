"""Searches for the largest network under a budget by channel counts, such as the same share of every group."""

from collections import Counter
from collections.abc import Callable, Sequence

from experiment.errors import InfeasibleBudget
from experiment.methods.base import Budget


def largest_share(
    alive: Sequence[int],
    free: Sequence[bool],
    size: Callable[[list[int]], int],
    budget: Budget,
    round_to: int | Sequence[int] = 1,
) -> list[int]:
    """Counts n' = max(1, round(rho n)) of one share rho for all groups, the largest whose size fits.

    With `round_to` r, n' is the nearest multiple of r, at least r, or n itself if that is nearer or n is smaller.

    As rho grows, the counts grow in steps of one channel, a group's k-th at rho = (k - 1/2) / n; groups of equal n step
    together. If a step does not fit as a whole, groups take it one after the other as long as it fits. So a larger
    budget never gives a smaller network.

    Args:
        alive: n, the number of channels that each group has left.
        free: whether a group may lose channels.
        size: the network's size for given counts, in the budget's quantity; never falling in any count.
        round_to: counts are multiples of this, or of one number for each group, except for groups that lose nothing.
    Raises: InfeasibleBudget: one channel per group already exceeds the budget.
    """
    each = [round_to] * len(alive) if isinstance(round_to, int) else round_to
    ladders = [ladder(n, r) if may else [n] for n, may, r in zip(alive, free, each, strict=True)]
    steps = sorted(
        ((rungs[k - 1] + rungs[k]) / (2 * n), group)
        for group, (n, rungs) in enumerate(zip(alive, ladders, strict=True))
        for k in range(1, len(rungs))
    )
    growing = [group for _, group in steps]
    num_steps = affordable_steps(ladders, growing, size, budget)
    counts = counts_after(ladders, growing[:num_steps])
    for share, group in steps[num_steps + 1 :]:
        if share != steps[num_steps][0]:
            break
        before = counts[group]
        counts[group] = ladders[group][ladders[group].index(before) + 1]
        if size(counts) > budget.limit:
            counts[group] = before
    return counts


def ladder(n: int, round_to: int) -> list[int]:
    """The counts that a group of n channels may have, increasing; the last one is n."""
    return [*range(min(round_to, n), n, round_to), n] if n else [0]


def counts_after(ladders: Sequence[Sequence[int]], growing: Sequence[int]) -> list[int]:
    """The counts after these groups have each taken one step on their ladder, in order."""
    taken = Counter(growing)
    return [rungs[taken[group]] for group, rungs in enumerate(ladders)]


def affordable_steps(
    ladders: Sequence[Sequence[int]], growing: Sequence[int], size: Callable[[list[int]], int], budget: Budget
) -> int:
    """The number of these steps, in order, that the budget allows.

    Args:
        growing: the group that takes each step.
        size: the network's size for given counts, in the budget's quantity; never falling in any count.
    Raises: InfeasibleBudget: the smallest network already exceeds the budget.
    """
    check_smallest(size(counts_after(ladders, ())), budget)
    return longest(len(growing), lambda num_steps: size(counts_after(ladders, growing[:num_steps])) <= budget.limit)


def check_smallest(smallest: int, budget: Budget) -> None:
    """Raises: InfeasibleBudget: the smallest network already exceeds the budget."""
    check_limit(smallest, budget.limit, budget.original, budget.quantity)


def check_limit(smallest: int, limit: int, original: int, quantity: str) -> None:
    """Raises: InfeasibleBudget: the smallest network already exceeds a limit."""
    if smallest > limit:
        raise InfeasibleBudget(limit=limit, smallest=smallest, original=original, quantity=quantity)


def longest(number: int, fits: Callable[[int], bool]) -> int:
    """The largest of 0, ..., number that fits, by bisection; 0 is assumed to fit."""
    known, too_many = 0, number + 1
    while too_many - known > 1:
        middle = (known + too_many) // 2
        known, too_many = (middle, too_many) if fits(middle) else (known, middle)
    return known
