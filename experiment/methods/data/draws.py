"""Sampling with replacement, row by row: the number of draws, the items that they hit, and how often.

N draws from probabilities p hit item i with probability 1 - (1 - p_i)^N, and count_i / (N p_i) is 1 on average: weights
that are multiplied by it keep their sum on average.

Rows are independent. Suffixes: R = rows, C = columns (items of a row). All in float64.
"""

import torch
from torch import Tensor

MOST_DRAWS = 2.0**53  # float64 does not have all integers above


def draws_for(p_RC: Tensor, wanted_R: Tensor, *, more: bool = False) -> Tensor:
    """The smallest N that hits at least `wanted` items on average, sum_i 1 - (1 - p_i)^N, for each row.

    The average is concave in N, so that Newton's steps from below, rounded down to integers, never pass the
    solution. They begin at the solution for equal probabilities, a lower bound.

    Args:
        p_RC: probabilities, zero for items that are never drawn; a row sums up to 1.
        wanted_R: integers below the row's number of possible items; 0 and 1 are returned as they are.
        more: whether N must hit more than `wanted` items on average.
    Returns: integers, at most 2^53.
    """
    logs_RC = torch.log1p(-p_RC).clamp(min=-1e100)  # finite where p rounds to one
    possible_R = (p_RC > 0).sum(1).double()
    simple_R = wanted_R <= 1
    draws_R = torch.where(simple_R, wanted_R.double(), uniform_draws(possible_R, wanted_R))
    open_R = torch.nonzero(~simple_R).flatten()
    while len(open_R):
        powers_RC = torch.exp(draws_R[open_R, None] * logs_RC[open_R])
        missing_R = wanted_R[open_R] - (1 - powers_RC).sum(1)
        short_R = missing_R >= 0 if more else missing_R > 0
        going_R = short_R & (draws_R[open_R] < MOST_DRAWS)
        open_R, missing_R = open_R[going_R], missing_R[going_R]
        slope_R = -(logs_RC[open_R] * powers_RC[going_R]).sum(1)
        step_R = (missing_R / slope_R).floor().clamp(min=1).nan_to_num(posinf=MOST_DRAWS)
        draws_R[open_R] = (draws_R[open_R] + step_R).clamp(max=MOST_DRAWS)
    return draws_R


def uniform_draws(possible_R: Tensor, wanted_R: Tensor) -> Tensor:
    """N, rounded down, for equal probabilities: ln(n / (n - s)) / ln(n / (n - 1)), at least s."""
    n_R, s_R = possible_R.clamp(min=2), wanted_R.double()
    rest_R = (1 - s_R / n_R).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.maximum(s_R, (torch.log(rest_R) / torch.log1p(-1 / n_R)).floor() - 1)


def first_draws(p_RC: Tensor, generator: torch.Generator) -> Tensor:
    """The number of the draw, from 1, that hits each item for the first time; infinite where p is zero.

    The order of first hits is that of independent exponential times of rates p_i. While the items hit so far have total
    probability P, the wait for the next one is geometric: k draws or more with probability P^(k-1). So any number of
    draws costs the same, and more draws hit the same items and further ones.
    """
    clocks_RC = torch.empty_like(p_RC).exponential_(generator=generator) / p_RC  # infinite where p is zero
    order_RC = torch.argsort(clocks_RC, dim=1, stable=True)
    sorted_RC = p_RC.gather(1, order_RC)
    left_RC = sorted_RC.flip(1).cumsum(1).flip(1).clamp(max=1)  # 1 - P before each item's turn
    left_RC[:, :1] = 1  # the first draw always hits
    waits_RC = torch.empty_like(p_RC).exponential_(generator=generator) / -torch.log1p(-left_RC)
    numbers_RC = (1 + waits_RC.floor()).cumsum(1).masked_fill(sorted_RC == 0, torch.inf)
    return torch.empty_like(p_RC).scatter_(1, order_RC, numbers_RC)


def counts_of(p_RC: Tensor, first_RC: Tensor, draws_R: Tensor, generator: torch.Generator) -> Tensor:
    """The number of times that N draws hit each item, given the draws that hit them first.

    Between the first hits of items k and k + 1 (in this order) every draw repeats one of the first k. From the last
    item backwards, the k-th therefore gets a binomial share, p_k / (p_1 + ... + p_k), of the repeats since its first
    hit that later items have not taken.

    Args:
        first_RC: from `first_draws`.
        draws_R: N.
    Returns: (R, C); a row sums up to N.
    """
    ordered_RC, order_RC = torch.sort(first_RC.masked_fill(first_RC > draws_R[:, None], torch.inf), dim=1, stable=True)
    hit_RC = ordered_RC.isfinite()
    sorted_RC = p_RC.gather(1, order_RC) * hit_RC
    shares_RC = sorted_RC / sorted_RC.cumsum(1).clamp(min=torch.finfo(torch.float64).tiny)
    ends_RC = torch.cat([ordered_RC[:, 1:], ordered_RC.new_full((len(p_RC), 1), torch.inf)], dim=1)
    ends_RC = torch.minimum(ends_RC, draws_R[:, None] + 1)
    repeats_RC = (ends_RC - ordered_RC - 1).masked_fill(~hit_RC, 0)
    counts_RC = hit_RC.double()
    pool_R = torch.zeros_like(draws_R)
    for k in reversed(range(int(hit_RC.sum(1).max()) if hit_RC.numel() else 0)):
        pool_R = pool_R + repeats_RC[:, k]
        taken_R = pool_R if k == 0 else torch.binomial(pool_R, shares_RC[:, k].clamp(max=1), generator=generator)
        counts_RC[:, k] += taken_R
        pool_R = pool_R - taken_R
    return torch.empty_like(p_RC).scatter_(1, order_RC, counts_RC)
