"""Filters by a norm of their weights, the same share of every layer: FT (l1) and SoftNet (l2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiment.methods.base import Budget, Calibration
from experiment.methods.filters import FilterMethod, Filters, Score, Scores, by_filter
from experiment.methods.settings import FTSettings
from experiment.methods.share import largest_share


def ft(settings: FTSettings) -> FilterMethod:
    """Filter thresholding: n' = max(1, round(rho n)) channels of every group stay, those of largest l1 norm.

    The score of a channel is the sum of |w| over its filters: one in an ordinary network, and where a sum ties several
    layers, all of theirs together (depthwise ones too). rho is the largest that the budget allows (`largest_share`).

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, https://arxiv.org/abs/1608.08710.
    Differs: one share for all layers, found from the budget, where they choose shares by sensitivity; layers that a sum
    ties are scored together, where they follow the shortcut; biases and BatchNorm of removed filters go too.
    """
    return FilterMethod(settings, "FT", _norm(lambda rows: rows.abs().sum(1)), same_share)


def _norm(norm: Callable[[Tensor], Tensor]) -> Score:
    def score(filters: Filters, calibration: Calibration | None, generator: torch.Generator) -> Scores:
        return by_filter(filters, norm)

    return score


def same_share(filters: Filters, scores: Scores, budget: Budget, round_to: int) -> list[int]:
    """The same share of every group's channels, the largest that the budget allows."""
    orders = [
        sorted(alive, key=lambda c: -s[c]) for alive, s in zip(filters.alive, [s.tolist() for s in scores], strict=True)
    ]

    def size(counts: list[int]) -> int:
        return filters.size([order[:n] for order, n in zip(orders, counts, strict=True)], budget.quantity)

    return largest_share([len(alive) for alive in filters.alive], filters.free, size, budget, round_to)
