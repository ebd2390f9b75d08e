"""The rows of weights that SiPP samples from: bounds of their errors, and the optimal shares of a budget.

A row consists of the weights of one sign of one filter. With m different weights left, its relative error is, with high
probability, at most

    err(m) = 1/2 (sqrt(t^2 + 6 t) + t),  t = A / (K m),

and the m that minimise sum_R err(m_R) / F_R under sum_R c_R m_R <= B share one multiplier nu: -err'(m_R) = nu F_R c_R.
Source: Baykal et al. 2019, https://arxiv.org/abs/1910.05422, who use a general solver.

Shape suffixes: R = rows, W = weights of all rows, T = points of a table.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from experiment.methods.data.sensitivity import C

K = 3.0
POINTS = 128


@dataclass(frozen=True)
class Rows:
    """The weights that have a sensitivity, all float64 on the CPU.

    Attributes:
        s, row: (W,) sensitivities and rows of the weights.
        p: (W,) each weight's share of its row's sensitivity.
        number, S: (R,) number of weights of a row, and the sum of their sensitivities.
        A: (R,) as in the bound above. filters, positions: (R,) of the row's layer.
        start, step: (R,); table: (R, T) ln of the expected number of different weights in N draws, where ln N is
            start + t step.
    """

    s: Tensor
    row: Tensor
    p: Tensor
    number: Tensor
    S: Tensor
    A: Tensor
    filters: Tensor
    positions: Tensor
    start: Tensor
    step: Tensor
    table: Tensor

    def enters(self, rings_W: Tensor, drawn_R: Tensor, prices_R: Tensor) -> Tensor:
        """The multiplier nu at which each weight is added, as nu falls: (W,).

        In a sampled row a weight is added when N, which grows with m, reaches its time. The last ones of a row are
        added together, when m exceeds all but one. In other rows the i-th largest is added when m exceeds i - 1.

        Args:
            rings_W: the time at which each weight is first drawn.
            drawn_R: whether a row is sampled.
            prices_R: F c.
        """
        num_W = torch.where(drawn_R[self.row], self.different(rings_W, self.row), self.ranks())
        most_W = (self.number - 1)[self.row]
        return multiplier(torch.minimum(num_W, most_W), self.A[self.row]) / prices_R[self.row]

    def ranks(self) -> Tensor:
        """0 for the largest of a row, 1 for the next: (W,)."""
        order, starts_R = self._sorted()
        ranks_W = torch.empty_like(self.s)
        ranks_W[order] = torch.arange(len(order), dtype=torch.float64) - starts_R[self.row[order]]
        return ranks_W

    def allocation(self, budget: float, prices_R: Tensor, costs_R: Tensor) -> Tensor:
        """The real m that minimise the sum of errors with sum c m equal to the budget, after 60 bisections: (R,).

        Args:
            prices_R: F c; costs_R: c.
        """

        def numbers(log_nu: float) -> Tensor:
            return torch.minimum(num_samples(math.exp(log_nu) * prices_R, self.A), self.number)

        low, high = -200.0, 200.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if float((costs_R * numbers(middle)).sum()) > budget else (low, middle)
        return numbers(high)

    def better_drawn(self, m_R: Tensor) -> Tensor:
        """Whether the bound for drawing m weights is below C (sum of the others), that of the m largest: (R,)."""
        kept_W = self.ranks() < m_R.ceil()[self.row]
        others_R = torch.zeros_like(self.S).index_add(0, self.row, self.s * ~kept_W)
        return others_R * C > error(m_R, self.A)

    def different(self, draws: Tensor, row: Tensor) -> Tensor:
        """The expected number of different weights of a row in this number of draws; both arguments have one shape."""
        x = (draws.log() - self.start[row]) / self.step[row]
        t = x.floor().clamp(0, POINTS - 2).long()
        left, right = self.table[row, t], self.table[row, t + 1]
        before = left + x * self.step[row]  # before the table every draw gives another weight
        return torch.where(x < 0, before, torch.lerp(left, right, (x - t).clamp(0, 1))).exp()

    def draws(self, m_R: Tensor) -> Tensor:
        """The real number of draws that give m different weights on average, the inverse of `different`: (R,)."""
        log_R = m_R.log()
        t = (torch.searchsorted(self.table, log_R[:, None])[:, 0] - 1).clamp(0, POINTS - 2)
        left, right = (self.table.gather(1, (t + i)[:, None])[:, 0] for i in (0, 1))
        x = t + ((log_R - left) / (right - left)).nan_to_num(1).clamp(0, 1)
        return torch.where(log_R < left, self.start + log_R - left, self.start + x * self.step).exp()

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The weights row by row, the largest first, and where every row begins."""
        by_size = torch.argsort(self.s, descending=True, stable=True)
        order = by_size[torch.argsort(self.row[by_size], stable=True)]
        return order, self.number.cumsum(0) - self.number


def rows_of(s_W: Tensor, row_W: Tensor, bounds_R: Tensor, filters_R: Tensor, positions_R: Tensor) -> Rows:
    """The rows that have weights with sensitivities above zero; A = S `bounds_R`."""
    present, row_W = torch.unique(row_W, return_inverse=True)
    bounds_R, filters_R, positions_R = bounds_R[present], filters_R[present], positions_R[present]
    number_R = torch.bincount(row_W, minlength=len(present)).double()
    S_R = torch.zeros_like(bounds_R).index_add(0, row_W, s_W)
    p_W = s_W / S_R[row_W]
    least_R = torch.ones_like(S_R).scatter_reduce(0, row_W, p_W, "amin")
    start_R = torch.full_like(S_R, math.log(0.01))
    step_R = (torch.log(50 / least_R) - start_R) / (POINTS - 1)  # until even the least likely has been drawn
    table_RT = torch.empty(len(S_R), POINTS, dtype=torch.float64)
    for t in range(POINTS):
        draws_R = (start_R + t * step_R).exp()
        found_W = -torch.expm1(-draws_R[row_W] * p_W)
        table_RT[:, t] = torch.zeros_like(S_R).index_add(0, row_W, found_W).log()
    A_R = S_R * bounds_R
    return Rows(s_W, row_W, p_W, number_R, S_R, A_R, filters_R, positions_R, start_R, step_R, table_RT)


def error(m: Tensor, A: Tensor) -> Tensor:
    """err(m); infinite for no samples."""
    t = A / (K * m)
    return ((t * t + 6 * t).sqrt() + t) / 2


def multiplier(m: Tensor, A: Tensor) -> Tensor:
    """-err'(m) = K / (2 A) t^2 ((t + 3) / sqrt(t^2 + 6 t) + 1); infinite for no samples."""
    return _slope(A / (K * m)).nan_to_num(nan=torch.inf) * K / A


def num_samples(slope: Tensor, A: Tensor) -> Tensor:
    """The m at which -err'(m) is `slope`.

    In logarithms the slope as a function of t rises everywhere by 3/2 to 2, so that steps of 1 / 1.75 converge.
    """
    target = (slope * A / K).log()
    log_t = target / 1.75
    for _ in range(20):
        log_t = log_t - (_slope(log_t.exp()).log() - target) / 1.75
    return A / (K * log_t.exp())


def _slope(t: Tensor) -> Tensor:
    return t * t * ((t + 3) / (t * t + 6 * t).sqrt() + 1) / 2
