"""The same share of every layer's filters: those of largest norm (FT: l1, SoftNet: l2), or any (Uniform Filters)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import largest_share
from experiment.methods.filters.base import Channels, ChannelScores, FilterMethod, ScoreChannels, by_filter
from experiment.methods.filters.settings import FilterSettings


def ft(settings: FilterSettings) -> FilterMethod:
    """Filter thresholding: n' = max(1, round(rho n)) channels of every group stay, those of largest l1 norm.

    The score of a channel is the sum of |w| over its filters: one in an ordinary network, and where a sum ties several
    layers, all of theirs together (depthwise ones too). rho is the largest that the budget allows (`largest_share`).

    Source: Li et al. 2017, Pruning Channels for Efficient ConvNets, https://arxiv.org/abs/1608.08710.
    Differs: one share for all layers, found from the budget, where they choose shares by sensitivity; layers that a sum
    ties are scored together, where they follow the shortcut; biases and BatchNorm of removed filters go too.
    """
    return FilterMethod(settings, "FT", _norm(lambda rows: rows.abs().sum(1)), same_share)


def soft_net(settings: FilterSettings) -> FilterMethod:
    """As FT, with the l2 norm sqrt(sum w^2) of a filter; where several layers are tied, the sum of their norms.

    Source: He et al. 2018, Soft Filter Pruning, https://arxiv.org/abs/1808.06866.
    Differs: what is pruned stays away, where they let it come back while training; as for FT otherwise.
    """
    return FilterMethod(settings, "SoftNet", _norm(lambda rows: rows.square().sum(1).sqrt()), same_share)


def uniform_filters(settings: FilterSettings) -> FilterMethod:
    """As FT, with scores drawn uniformly at random: the baseline that a score must beat."""

    def score(filters: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        return [torch.rand(group.size, dtype=torch.float64, generator=generator) for group in filters.groups]

    return FilterMethod(settings, "Uniform Filters", score, same_share)


def _norm(norm: Callable[[Tensor], Tensor]) -> ScoreChannels:
    def score(filters: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        return by_filter(filters, norm)

    return score


def same_share(filters: Channels, scores: ChannelScores, budget: Budget, round_to: int) -> list[int]:
    """The same share of every group's channels, the largest that the budget allows."""
    orders = filters.orders(scores)

    def size(counts: list[int]) -> int:
        return filters.size([order[:n] for order, n in zip(orders, counts, strict=True)], budget.quantity)

    return largest_share([len(alive) for alive in filters.alive], filters.free, size, budget, round_to)
