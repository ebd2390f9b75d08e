"""The common part of methods that remove filters: removable channels, the network's cost without them, and plans.

A method is a score for every channel (`ScoreChannels`) and a rule that turns scores and a budget into the number of
channels that each group keeps (`CountChannels`). Each group keeps its channels of largest score.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, batch_size, moved_like, same_form
from experiment.layers.build import build, slice_mask, write_whole
from experiment.layers.channels.channel_axes import filters_of
from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.fold_constants import Folded, fold_constants, fold_means
from experiment.layers.channels.group_data import (
    ChannelGroup,
    Integers,
    Member,
    Sizes,
    alive_channels,
    kept_of,
    sizes_of,
)
from experiment.layers.compressible import WEIGHT_LAYERS, trace_layers
from experiment.layers.masks import stored
from experiment.layers.plan import Detail, Kept, Plan, State
from experiment.layers.refit import refit
from experiment.measure import Count, count
from experiment.methods.base import GIVE_DATA, Budget, Calibration, Quantity
from experiment.methods.filters.settings import FilterSettings
from experiment.methods.layer_patterns import matching
from experiment.methods.starting_state import parameter_name


@dataclass(frozen=True)
class Channels:
    """The channels of a starting state.

    Attributes:
        state: the starting state.
        groups: the channels that can only be removed together.
        free: whether a group may lose channels.
        alive: for each group the remaining channels, in order.
        sizes: the size of the network as a function of the groups' channel counts.
        layers: layer name -> number of its output channels in the original network.
        work: name of a layer's weight -> multiply-adds per sample of each of its elements.
        constant: modules of which channels that are removed from a sum leave a constant.
    """

    state: State
    groups: Sequence[ChannelGroup]
    free: Sequence[bool]
    alive: Sequence[tuple[int, ...]]
    sizes: Sizes
    layers: Mapping[str, int]
    work: Mapping[str, int]
    constant: frozenset[str] = frozenset()

    def kept(self, chosen: Sequence[Sequence[int]]) -> dict[str, Kept]:
        """What stays of every module if groups keep the `chosen` channels."""
        kept = kept_of(self.groups, chosen)
        constant = {name for name in self.constant & kept.keys() if kept[name].made is not None}
        return kept | {name: replace(kept[name], constants=True) for name in constant}

    def size(self, chosen: Sequence[Sequence[int]], quantity: Quantity) -> int:
        """Unmasked parameters or multiply-adds of the network if groups keep the `chosen` channels."""
        counts, flops = [len(channels) for channels in chosen], quantity == "flops"
        shared = any(group.streams for group in self.groups)  # then counts do not tell which channels meet
        kept = self.kept(chosen) if shared or self.state.masks else {}
        masked = 0
        for name, mask in self.state.masks.items():
            each = self.work.get(name, 0) if flops else 1
            masked += each * int((~slice_mask(mask, kept, name)).sum())
        if flops:
            return self.sizes.flops_of(counts, kept if shared else None) - masked
        constants = sum(sides.num_constants for sides in kept.values())
        return self.sizes.parameters_of(counts, kept if shared else None) + constants - masked

    def steps(self, round_to: int) -> list[int]:
        """For each group the number of channels whose filters are a multiple of `round_to`: a head has many."""
        own = (next(m for m in group.members if m.side == "out" and m.module == group.name) for group in self.groups)
        return [round_to // math.gcd(round_to, len(member.positions[0])) for member in own]

    def size_of(self, orders: Sequence[Sequence[int]], quantity: Quantity) -> Callable[[Sequence[int]], int]:
        """The size as a function of the numbers of channels that groups keep, the first ones in these orders."""
        return lambda counts: self.size([order[:n] for order, n in zip(orders, counts, strict=True)], quantity)

    def orders(self, scores: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """For each group the remaining channels by decreasing score, ties in order."""
        pairs = zip(self.alive, [(-s).tolist() for s in scores], strict=True)
        return [tuple(sorted(alive, key=negated.__getitem__)) for alive, negated in pairs]

    def plan(self, chosen: Sequence[Sequence[int]]) -> Plan:
        """The plan that keeps these channels of every group."""
        kept = self.kept(chosen)
        details: dict[str, dict[str, Detail]] = {}
        for name, channels in self.layers.items():
            out = kept.get(name, Kept()).out
            details[name] = {"channels": channels if out is None else len(out), "channels_before": channels}
        return Plan(
            masks=dict(self.state.masks), kept=kept, parameters=self.size(chosen, "parameters"), details=details
        )


ChannelScores = Sequence[Tensor]
"""For every group the score of each of its channels: (group.size,), float64, on the CPU. Larger ones are kept."""

ScoreChannels = Callable[[Channels, Calibration | None, torch.Generator], ChannelScores]
CountChannels = Callable[[Channels, ChannelScores, Budget, int], list[int]]
"""From channels, scores, budget and `round_to` to the number of channels that every group keeps."""


@dataclass(frozen=True)
class ChannelRanking:
    """The analysis: for each group the remaining channels by decreasing score, with all scores."""

    filters: Channels
    scores: ChannelScores
    order: Sequence[tuple[int, ...]]
    inputs: Inputs | None = None


@dataclass(frozen=True)
class FilterMethod:
    """Removes filters with their biases, BatchNorm and the weights that read them.

    Channels of the network's input and output, and of layers that `ignore` matches, are kept.

    Args:
        label: the method's name in messages.
        score: computes the scores of all channels.
        rule: decides how many channels every group keeps.
    """

    settings: FilterSettings
    label: str
    score: ScoreChannels
    rule: CountChannels

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> ChannelRanking:
        """Score all channels.

        Raises: ConfigError: a pattern of `ignore` names no layer. CompressionError: the network cannot be traced, or
            the calibration data that the method or `fold` needs are missing.
        """
        channels = trace_channels(state, self.settings, self.label, calibration)
        if (self.settings.fold == "mean" or self.settings.refit) and not has_data(calibration):
            what = "fold 'mean'" if self.settings.fold == "mean" else "refit"
            raise CompressionError(f"{self.label} with {what} needs calibration data. {GIVE_DATA}")
        scores = self.score(channels, calibration, generator)
        inputs = moved_like(calibration.inputs, state.example) if has_data(calibration) else None
        return ChannelRanking(channels, scores, channels.orders(scores), inputs)

    def plan(self, analysis: ChannelRanking, budget: Budget) -> Plan:
        """Keep the largest network within the budget that the rule allows.

        Raises: InfeasibleBudget: the smallest one already exceeds the budget.
        """
        counts = self.rule(analysis.filters, analysis.scores, budget, self.settings.round_to)
        return analysis.filters.plan([order[:n] for order, n in zip(analysis.order, counts, strict=True)])

    def fill(self, built: nn.Module, state: State, analysis: ChannelRanking, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; `fold` and `refit` refer to this state's outputs."""
        write_whole(built, state.network, plan)
        groups, inputs, folded = analysis.filters.groups, analysis.inputs, dict[str, Folded]()
        if self.settings.fold == "constant":
            folded = fold_constants(built, state.network, state.example, groups, plan.kept)
        elif self.settings.fold == "mean":
            assert inputs is not None
            folded = fold_means(built, state.network, inputs, groups, plan.kept)
        if self.settings.refit and plan.kept != analysis.filters.state.kept:
            assert inputs is not None
            refit(
                built, state.network, _readers(built, plan, groups), inputs, seed=0,
                kept=plan.kept, folded=folded, intercepts=self.settings.fold == "mean",
            )  # fmt: skip


def has_data(calibration: Calibration | None) -> TypeGuard[Calibration]:
    """Whether there are calibration inputs."""
    return calibration is not None and batch_size(calibration.inputs) > 0


def finite_parameter(network: nn.Module, layer: str) -> Tensor:
    """A layer's weight on the CPU in float64.

    Raises: CompressionError: values are NaN or infinite.
    """
    weight = network.get_submodule(layer).get_parameter("weight").detach()
    if not weight.isfinite().all():
        raise CompressionError(f"layer '{layer}': weights must be finite. Got NaN or infinity: did training diverge?")
    return weight.cpu().double()


def _readers(built: nn.Module, plan: Plan, groups: Sequence[ChannelGroup]) -> list[str]:
    """The layers that read lost channels, or sums of them, and can be fitted: they are neither grouped nor masked."""
    names = [name for name, sides in plan.kept.items() if sides.inputs is not None]
    lost = {name for name, sides in plan.kept.items() if sides.out is not None}
    sums = (m.module for g in groups if lost & {*g.producers} for m in g.members if m.side == "in" and m.shared)
    names = list(dict.fromkeys((*names, *sums)))
    layers = {name: built.get_submodule(name) for name in names if parameter_name(name) not in plan.masks}
    return [name for name, layer in layers.items() if is_matrix(layer)]


def readers(network: nn.Module, group: ChannelGroup) -> list[Member]:
    """The layers that mix a group's channels; grouped convolutions keep them apart."""
    return [
        member for member in group.members if member.side == "in" and is_matrix(network.get_submodule(member.module))
    ]


def is_matrix(layer: nn.Module) -> bool:
    """Whether a layer is one matrix of patches, so that it can be sampled and fitted: not a grouped convolution."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def trace_channels(
    state: State, settings: FilterSettings, label: str, calibration: Calibration | None = None
) -> Channels:
    """Trace a state's channels, also on calibration inputs of the example's shape.

    Layers of a sum that have once lost channels alone are never coupled again.

    Raises: ConfigError: a pattern of `ignore` names no layer.
    """
    apart = any(sides.made is not None or sides.taken is not None for sides in state.kept.values())
    more = [] if state.samples is None else [state.samples]
    if has_data(calibration) and same_form(calibration.inputs, state.example):
        more.append(moved_like(calibration.inputs, state.example))
    groups = channel_groups(state.network, state.example, more, coupled=settings.coupled and not apart)
    layers = trace_layers(state.network, state.example, WEIGHT_LAYERS)
    ignored = matching(settings.ignore, layers, label)
    counted = count(state.network, state.example)
    return Channels(
        state,
        groups,
        [group.exempt is None and ignored.isdisjoint(group.producers) for group in groups],
        alive_channels(groups, state.kept),
        _sizes(state, groups, counted),
        {name: info.out_features for name, info in layers.items()},
        {
            parameter_name(name): layer.flops // stored(state.network.get_submodule(name), "weight").numel()
            for name, layer in counted.layers.items()
        },
        _constant(state, groups, settings),
    )


def _constant(state: State, groups: Sequence[ChannelGroup], settings: FilterSettings) -> frozenset[str]:
    """The modules of which channels that are removed from a sum leave a constant: with a bias, which `fold` sets."""
    ends = {side.module for group in groups for side in group.streams if side.side == "made"}
    biased = {name for name in ends if getattr(state.network.get_submodule(name), "bias", None) is not None}
    before = {name for name, sides in state.kept.items() if sides.constants}
    return frozenset(biased if settings.fold != "none" else biased & before)


def _sizes(state: State, groups: Sequence[ChannelGroup], whole: Count) -> Sizes:
    """The network's size as a function of channel counts, including products of activations such as attention's.

    Which dimensions of a product are channels is found by counting networks with half the channels of some groups, and
    verified with a quarter of all. Other products count as if all channels stayed: the network then has fewer
    multiply-adds than planned, never more.
    """
    sizes = sizes_of(state.network, state.example, groups, whole.flops)
    numbers = [group.size for group in groups]

    def part(divisor: int) -> list[int]:
        return [group.size if group.exempt else max(1, group.size // divisor) for group in groups]

    def products(counts: Sequence[int]) -> Integers:
        plan = Plan(kept=kept_of(groups, [range(n) for n in counts]))
        return np.array(count(build(state.network, plan), state.example).products, np.int64)

    full, fewest = np.array(whole.products, np.int64), products(part(4)) if whole.products else None
    if fewest is None or len(fewest) != len(full) or (fewest == full).all():
        return sizes
    halves = part(2)
    codes = {g: i + 1 for i, g in enumerate(g for g, n in enumerate(numbers) if halves[g] < n)}
    trials: list[tuple[set[int], Integers]] = []  # groups with half their channels, and the products

    def tried(some: set[int]) -> Integers:
        found = products([halves[g] if g in some else n for g, n in enumerate(numbers)])
        trials.append((some, found))
        return found

    power, beside = np.zeros((2, len(full), len(groups)), np.int64)
    # one trial for every binary digit: those in which a product shrinks spell the number of the group in it
    digits = range(len(codes).bit_length())
    shrinks = [tried({g for g, code in codes.items() if code >> digit & 1}) != full for digit in digits]
    spelled = sum((shrunk.astype(np.int64) << digit for digit, shrunk in enumerate(shrinks)), np.zeros_like(full))
    for g, code in codes.items():
        for p in np.flatnonzero(spelled == code):
            found = next(found for some, found in trials if g in some)
            power[p, g], beside[p, g] = _dimensions(halves[g], numbers[g], int(found[p]), int(full[p]))

    def exact() -> npt.NDArray[np.bool_]:
        followed = sizes.with_products(numbers, full, power, beside)
        cases = [([halves[g] if g in some else n for g, n in enumerate(numbers)], found) for some, found in trials]
        cases.append((part(4), fewest))
        same: npt.NDArray[np.bool_] = np.array([followed.products_of(counts) == found for counts, found in cases])
        return np.asarray(same.all(0))

    several = np.flatnonzero(~exact())  # products with channels of several groups
    power[several] = 0
    for g, code in codes.items():
        among = [p for p in several if code & ~spelled[p] == 0]
        found = tried({g}) if among else full
        for p in among:
            power[p, g], beside[p, g] = _dimensions(halves[g], numbers[g], int(found[p]), int(full[p]))
    power[~exact()] = 0
    return sizes.with_products(numbers, full, power, beside)


def _dimensions(few: int, n: int, less: int, all_: int) -> tuple[int, int]:
    """The number of dimensions of a product that are n channels, and of b others in each, from its size with `few`.

    With a dimension of n + b, less / all = (few + b) / (n + b).
    """
    if less == all_:
        return 0, 0
    b, rest = divmod(less * n - all_ * few, all_ - less)
    if b >= 0 and rest == 0:
        return 1, b
    return (2, 0) if less * n**2 == all_ * few**2 else (0, 0)


def by_filter(norm: Callable[[Tensor], Tensor], *, average: bool = False) -> ScoreChannels:
    """Scores that are sums, over the layers that produce a channel, of a norm of its filters.

    Args:
        norm: from filters as rows (channels, weights) in float64 to (channels,).
        average: the mean of a channel's filters instead, so that groups of few and of many layers are comparable.
    Returns: computes the scores; raises CompressionError if weights are NaN or infinite.
    """

    def score(channels: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        network, found = channels.state.network, []
        for group in channels.groups:
            scores, num_filters = torch.zeros(group.size, dtype=torch.float64), 0
            for member in makers(group) if group.exempt is None else ():
                layer = network.get_submodule(member.module)
                norms = norm(filters_of(layer, finite_parameter(network, member.module)))
                scores += norms[torch.tensor(member.positions)].sum(1)
                num_filters += len(member.positions[0])
            found.append(scores / max(num_filters, 1) if average else scores)
        return found

    return score


def makers(group: ChannelGroup) -> Iterator[Member]:
    """The layers that produce a group's channels."""
    return (member for member in group.members if member.side == "out" and member.module in group.producers)
