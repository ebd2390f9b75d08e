"""FT: the filters of smallest l1 norm go, in every layer the same share, together with all that belongs to them."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError
from experiment.layers.build import slice_mask, write_whole
from experiment.layers.ghosts import fold_ghosts
from experiment.layers.groups import ChannelGroup, Sizes, alive_channels, kept_of, sizes_of
from experiment.layers.inspect import trace_layers
from experiment.layers.plan import Detail, Kept, Plan, State
from experiment.layers.surgery import channel_groups
from experiment.measure import count
from experiment.methods.base import Budget, Calibration
from experiment.methods.settings import FTSettings
from experiment.methods.share import largest_share


@dataclass(frozen=True)
class FTAnalysis:
    """What a network's channels are worth and what they cost.

    Attributes:
        groups: the channels that can only go together.
        free: whether a group may lose channels.
        order: of each group the channels that are left, the largest score first.
        sizes: the size of the network as arithmetic on the groups' counts.
        masks: the state's masks, which stay on what stays.
        channels: layer name -> number of its output channels in the original network.
    """

    groups: Sequence[ChannelGroup]
    free: Sequence[bool]
    order: Sequence[tuple[int, ...]]
    sizes: Sizes
    masks: Mapping[str, Tensor]
    channels: Mapping[str, int]


class FT:
    """Filter thresholding: n' = max(1, round(rho n)) channels of every group stay, those of largest l1 norm.

    The score of a channel is the sum of |w| over its filters: one in an ordinary network, and where a sum ties several
    layers, all of theirs together (depthwise ones too). rho is the largest that the budget allows (`largest_share`).
    Channels that give the network's output, or read its input, stay.

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, https://arxiv.org/abs/1608.08710.
    Differs: one share for all layers, found from the budget, where they choose shares by sensitivity; layers that a sum
    ties are scored together, where they follow the shortcut; biases and BatchNorm of removed filters go too.
    """

    def __init__(self, settings: FTSettings) -> None:
        self.settings = settings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> FTAnalysis:
        groups = channel_groups(state.network, state.example)
        layers = trace_layers(state.network, state.example)
        ignored = _matching(self.settings.ignore, layers)
        alive = alive_channels(groups, state.kept)
        scores = [_scores(group, state.network) for group in groups]
        return FTAnalysis(
            groups,
            [group.exempt is None and ignored.isdisjoint(group.producers) for group in groups],
            [tuple(sorted(left, key=lambda c: -score[c])) for left, score in zip(alive, scores, strict=True)],
            sizes_of(state.network, state.example, groups, count(state.network, state.example).flops),
            dict(state.masks),
            {name: info.out_features for name, info in layers.items()},
        )

    def plan(self, analysis: FTAnalysis, budget: Budget) -> Plan:
        """The largest network within the budget.

        Raises: InfeasibleBudget: one channel a group is already more.
        """

        def size(counts: Sequence[int]) -> int:
            return _parameters(analysis, counts) if budget.quantity == "parameters" else analysis.sizes.flops_of(counts)

        counts = largest_share([len(order) for order in analysis.order], analysis.free, size, budget)
        kept = _kept(analysis, counts)
        details: dict[str, dict[str, Detail]] = {}
        for name, channels in analysis.channels.items():
            out = kept.get(name, Kept()).out
            details[name] = {"channels": channels if out is None else len(out), "channels_before": channels}
        return Plan(masks=analysis.masks, kept=kept, parameters=_parameters(analysis, counts), details=details)

    def fill(self, built: nn.Module, state: State, analysis: FTAnalysis, plan: Plan) -> None:
        write_whole(built, state.network, plan)
        if self.settings.fold:
            fold_ghosts(built, state.network, state.example, analysis.groups, plan.kept)


def _scores(group: ChannelGroup, network: nn.Module) -> list[float]:
    """The l1 norm of every channel's filters, summed over the layers that produce the group; 0 where none may go."""
    scores = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members if group.exempt is None else ():
        if member.side == "out" and member.module in group.producers:
            weight = network.get_submodule(member.module).get_parameter("weight").detach()
            if not weight.isfinite().all():
                raise CompressionError(
                    f"{member.module}: the weights must be finite. Got NaN or infinity: did training diverge?"
                )
            norms = weight.abs().flatten(1).sum(1, dtype=torch.float64).cpu()
            scores += norms[torch.tensor(member.positions)].sum(1)
    values: list[float] = scores.tolist()
    return values


def _matching(patterns: Sequence[str], layers: Collection[str]) -> set[str]:
    """The layers that a pattern names; one that names none is the user's mistake."""
    named = {pattern: fnmatch.filter(layers, pattern) for pattern in patterns}
    idle = [pattern for pattern, names in named.items() if not names]
    if idle:
        raise ConfigError(
            [f"FT.ignore: no layer is called '{pattern}'. The layers are {', '.join(layers)}." for pattern in idle]
        )
    return {name for names in named.values() for name in names}


def _kept(analysis: FTAnalysis, counts: Sequence[int]) -> dict[str, Kept]:
    chosen = [order[:count] for order, count in zip(analysis.order, counts, strict=True)]
    return kept_of(analysis.groups, chosen)


def _parameters(analysis: FTAnalysis, counts: Sequence[int]) -> int:
    """Parameters of the network that keeps `counts` channels of each group; masked ones are none."""
    total = analysis.sizes.parameters_of(counts)
    if analysis.masks:
        kept = _kept(analysis, counts)
        total -= sum(int((~slice_mask(mask, kept, name)).sum()) for name, mask in analysis.masks.items())
    return total
