"""Sampling in continuous time: the draws of every item until a time N, and the factors that keep sums unbiased.

Item i is drawn at the rings of a clock of rate p_i, independently of the others: for the first time at E_i / p_i, E_i
exponential, and N p_i times on average until time N. This equals drawing with replacement from p, except that the total
number of draws is Poisson-distributed around N. An item drawn by time N is multiplied by count_i / (N p_i), any other
becomes zero: the expectation of each is unchanged. This also holds if N is the time at which one item too many arrives.

Source: Duffield, Lund and Thorup 2007, Priority sampling for estimation of arbitrary subset sums
"""

from __future__ import annotations

import torch
from torch import Tensor

MANY = 1e6  # draws, of which the actual number differs from the expected one by 0.1 %


def first_rings(p: Tensor, generator: torch.Generator) -> Tensor:
    """The time at which every item is first drawn, E_i / p_i; infinite where p is zero. On the CPU, float64."""
    return torch.empty(p.shape, dtype=torch.float64).exponential_(generator=generator) / p.cpu().double()


def factors(p: Tensor, rings: Tensor, until: Tensor, generator: torch.Generator) -> Tensor:
    """count_i / (N p_i) at the time N, `until`, for items drawn by then, counting the first draw and later ones.

    All arguments have one shape.
    """
    expected = (p * (until - rings)).clamp(min=0)
    counts = torch.where(expected < MANY, torch.poisson(expected.clamp(max=MANY), generator=generator), expected)
    return (1 + counts) / (p * until)
