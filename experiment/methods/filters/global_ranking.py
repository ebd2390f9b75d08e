"""One ranking of all channels of the network: by norms of filters (Global Filters) or BatchNorm scales (Slimming)."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiment.errors import CompressionError, log
from experiment.layers.channels.group_data import Member
from experiment.methods.base import Budget, Calibration
from experiment.methods.filters.allocation import longest_prefix, scored
from experiment.methods.filters.base import Channels, ChannelScores, FilterMethod, by_filter, finite_parameter
from experiment.methods.filters.settings import GlobalFiltersSettings, RankedFilterSettings


def global_filters(settings: GlobalFiltersSettings) -> FilterMethod:
    """Keeps the channels of largest norm in the whole network, as many as fit (`longest_prefix`).

    The norm of a filter w of n weights is (sum |w|^p / n)^(1/p), p = 2 or 1; without n, large filters would win. The
    score of a channel is the mean over its filters: usually one, or one per layer where a sum ties several.

    Source: the ranking of Han et al. 2015, https://arxiv.org/abs/1506.02626, for filters instead of weights.
    """

    def norm(rows: Tensor) -> Tensor:
        return rows.square().mean(1).sqrt() if settings.norm == "l2" else rows.abs().mean(1)

    return scored(settings, "Global Filters", by_filter(norm, average=True))


def slimming(settings: RankedFilterSettings) -> FilterMethod:
    """Network slimming: keeps the channels of largest BatchNorm scale in the whole network, as many as fit.

    The score of a channel is |gamma|, averaged over all BatchNorm layers that it passes through. Channels that pass
    through none are kept, with a warning; a network without BatchNorm is an error. The score is most meaningful for
    networks trained with an l1 penalty on these scales.

    Source: Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming,
    https://arxiv.org/abs/1708.06519.
    Differs: the training loss is unchanged; every layer keeps at least one channel; a channel is removed from all
    layers that read it (theirs lets each reader of a concatenation or sum select its own).
    """
    return FilterMethod(settings, "Slimming", _scales, partial(_by_scale, protected=settings.protected))


def _scales(filters: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
    found, normed = [], _normed(filters)
    if not any(normed):
        raise CompressionError(
            "Slimming ranks channels by the scales of BatchNorm layers, and no removable channel of this network "
            "passes through one. Use a method that ranks filters by their weights, such as FT or Global Filters."
        )
    for group, free, members in zip(filters.groups, filters.free, normed, strict=True):
        if free and not members:
            log.warning("Slimming keeps all channels of %s: no BatchNorm scales them.", ", ".join(group.producers))
        scores = torch.zeros(group.size, dtype=torch.float64)
        for member in members:
            scales = finite_parameter(filters.state.network, member.module).abs()
            scores += scales[torch.tensor(member.positions)].mean(1) / len(members)
        found.append(scores)
    return found


def _by_scale(
    filters: Channels, scores: ChannelScores, budget: Budget, round_to: int, *, protected: float
) -> list[int]:
    free = [may and bool(members) for may, members in zip(filters.free, _normed(filters), strict=True)]
    return longest_prefix(replace(filters, free=free), scores, budget, round_to, protected=protected)


def _normed(filters: Channels) -> list[list[Member]]:
    """For each group that may lose channels the BatchNorm layers with scales that they pass through."""
    modules = dict(filters.state.network.named_modules())
    return [
        [member for member in group.members if _scaled(modules.get(member.module))] if free else []
        for group, free in zip(filters.groups, filters.free, strict=True)
    ]


def _scaled(module: nn.Module | None) -> bool:
    return isinstance(module, _BatchNorm) and module.weight is not None
