"""One share for all groups: against trying every share."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import pytest

from experiment.errors import InfeasibleBudget
from experiment.methods.base import Budget
from experiment.methods.budget_search import largest_share

ALIVE, FREE = (2, 8, 8, 6), (True, True, True, False)


def size(counts: Sequence[int]) -> int:
    """A chain of layers: products of neighbours."""
    return sum(5 * a * b + a for a, b in itertools.pairwise((2, *counts)))


def counts_of(share: Fraction) -> list[int]:
    """n' = max(1, round(rho n)), halves up."""
    return [max(1, math.floor(share * n + Fraction(1, 2))) if may else n for n, may in zip(ALIVE, FREE, strict=True)]


def budget(limit: int) -> Budget:
    return Budget("parameters", limit, size(ALIVE))


SMALLEST = size([1, 1, 1, 6])
SHARES = sorted({Fraction(2 * k - 1, 2 * n) for n in ALIVE for k in range(1, n + 1)} | {Fraction(1)})


def test_every_share_that_fits_exactly_is_reached() -> None:
    for share in SHARES:
        counts = counts_of(share)
        assert largest_share(ALIVE, FREE, size, budget(size(counts))) == counts


def test_it_is_the_largest_that_the_order_allows() -> None:
    for limit in range(size(counts_of(Fraction(0))), size(ALIVE) + 20):
        counts = largest_share(ALIVE, FREE, size, budget(limit))
        whole = max((counts_of(share) for share in [Fraction(0), *SHARES] if size(counts_of(share)) <= limit), key=size)
        following = next((counts_of(share) for share in SHARES if size(counts_of(share)) > limit), list(ALIVE))
        assert size(counts) <= limit
        assert all(a <= c <= b for a, c, b in zip(whole, counts, following, strict=True))
        for group, step in enumerate(following):
            if counts[group] < step:  # no group could take its part of the next step in addition
                more = [*counts[:group], counts[group] + 1, *counts[group + 1 :]]
                assert size(more) > limit


def test_a_larger_budget_never_gives_a_smaller_network() -> None:
    sizes = [size(largest_share(ALIVE, FREE, size, budget(limit))) for limit in range(SMALLEST, size(ALIVE) + 5)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == size(ALIVE)


def test_groups_of_one_step_take_theirs_one_after_the_other() -> None:
    counts = largest_share((2, 2), (True, True), lambda counts: 10 * counts[0] + counts[1], budget(12))
    assert counts == [1, 2]  # the first does not fit, the second does


def test_too_small_a_budget_names_the_smallest() -> None:
    smallest = SMALLEST
    with pytest.raises(InfeasibleBudget) as caught:
        largest_share(ALIVE, FREE, size, budget(smallest - 1))
    assert (caught.value.smallest, caught.value.limit) == (smallest, smallest - 1)
    assert largest_share(ALIVE, FREE, size, budget(smallest)) == [1, 1, 1, 6]
