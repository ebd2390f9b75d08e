"""Sampling in continuous time: how often each item is drawn until a time N, and the factors that keep sums unbiased.

Item i is drawn by a Poisson process of rate p_i, independently of the others: first at E_i / p_i, E_i exponential, and
N p_i times on average until time N. This is drawing with replacement from p with a total number of draws that is
Poisson-distributed with mean N. Items that are drawn by time N are multiplied by count_i / (N p_i), the others by zero:
each is unbiased. This also holds if N is the time of the first item that is not kept.

Source: Duffield, Lund and Thorup 2007, Priority sampling for estimation of arbitrary subset sums
"""

import torch
from torch import Tensor

MANY = 1e6  # draws, beyond which the expected number is used: it is off by 0.1 %


def first_rings(p: Tensor, generator: torch.Generator) -> Tensor:
    """The time at which each item is first drawn, E_i / p_i; infinite where p is zero. On the CPU, float64."""
    return torch.empty(p.shape, dtype=torch.float64).exponential_(generator=generator) / p.cpu().double()


def factors(p: Tensor, rings: Tensor, until: Tensor, generator: torch.Generator) -> Tensor:
    """count_i / (N p_i) at the time N, `until`, for items drawn by then: the first draw and those after it.

    All arguments have the same shape.
    """
    expected = (p * (until - rings)).clamp(min=0)
    counts = torch.where(expected < MANY, torch.poisson(expected.clamp(max=MANY), generator=generator), expected)
    return (1 + counts) / (p * until)
