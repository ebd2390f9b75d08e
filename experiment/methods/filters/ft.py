"""The same share of every layer's filters: of largest norm (FT: l1, SoftNet: l2) or random (Uniform Filters)."""

import torch

from experiment.methods.base import Calibration
from experiment.methods.filters.allocation import scored
from experiment.methods.filters.base import Channels, ChannelScores, FilterMethod, by_filter
from experiment.methods.filters.settings import ScoredFilterSettings


def ft(settings: ScoredFilterSettings) -> FilterMethod:
    """Filter thresholding: keeps the n' = max(1, round(rho n)) channels of largest l1 norm in every group.

    The score of a channel is the sum of |w| over its filters: usually one, or those of all layers that a sum ties
    together (depthwise ones included). rho is the largest share that the budget allows (`largest_share`). The setting
    `allocation` has other rules.

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, https://arxiv.org/abs/1608.08710.
    Differs: one share for all layers, found from the budget (they choose shares by sensitivity); layers that a sum ties
    are scored together (they follow the shortcut); biases and BatchNorm of removed filters are removed too.
    """
    return scored(settings, "FT", by_filter(lambda rows: rows.abs().sum(1)))


def soft_net(settings: ScoredFilterSettings) -> FilterMethod:
    """Like FT, with the l2 norm sqrt(sum w^2) of a filter; the sum of norms where several layers are tied.

    Source: He et al. 2018, Soft Filter Pruning, https://arxiv.org/abs/1808.06866.
    Differs: pruned filters are removed for good (theirs can recover during training); otherwise as for FT.
    """
    return scored(settings, "SoftNet", by_filter(lambda rows: rows.square().sum(1).sqrt()))


def uniform_filters(settings: ScoredFilterSettings) -> FilterMethod:
    """Like FT, with scores drawn uniformly at random: the baseline that any score must beat."""

    def score(filters: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        return [torch.rand(group.size, dtype=torch.float64, generator=generator) for group in filters.groups]

    return scored(settings, "Uniform Filters", score)
