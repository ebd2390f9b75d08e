"""Provable Filter Pruning: channels by the sensitivity of the layers that read them, layers by a common error bound.

Shape suffix: C = channels of a group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from experiment.layers.compressible import trace_layers
from experiment.layers.plan import Plan, State
from experiment.methods.base import Budget, Calibration, calibration_inputs
from experiment.methods.budget_search import affordable_steps, counts_after, ladder
from experiment.methods.data.draws import draws_for
from experiment.methods.data.poisson_draws import factors, first_rings
from experiment.methods.data.sensitivity import channel_sensitivities, union_bound, weight_sensitivities
from experiment.methods.filters.base import (
    ChannelRanking,
    Channels,
    ChannelScores,
    FilterMethod,
    ScoreChannels,
    readers,
)
from experiment.methods.filters.settings import PFPSettings
from experiment.methods.starting_state import live_weight, parameter_name
from experiment.random_streams import generator as stream

K = 3.0

Choose = Callable[[int, int], Sequence[int]]
"""From a group's index and a number of channels to the channels that are kept."""


def pfp(settings: PFPSettings) -> FilterMethod:
    """Keeps the channels of largest sensitivity; one relative error eps for all layers decides how many of each group.

    A channel's sensitivity is the maximum over its weights in all layers that read it, positions and samples. With p_c
    its share of the group's sum S, a group needs m = ceil(K (6 + 2 eps) alpha S / eps^2) samples, K = 3 and
    alpha = 2 C ln(8 (eta + 1) kappa / delta), and keeps as many channels as these hit on average,

        ceil(sum_c 1 - (1 - p_c)^m), at least 1.

    eps decreases, adding one channel after the other, until the budget is used up; those without sensitivity are last.

    Source: Liebenwein et al. 2020, https://arxiv.org/abs/1911.07412. Differs: sensitivities and alpha of a group that
    several layers read are the maximum of theirs; biases and BatchNorm of removed channels are removed too; channels of
    the network's input are kept (torchprune may remove a colour).
    """
    return FilterMethod(settings, "PFP", _score(settings, "PFP"), same_error)


def pfp_rand(settings: PFPSettings) -> SampledPFP:
    """PFP that samples the channels to keep with probabilities p, and rescales the weights that read them."""
    return SampledPFP(settings, "PFP (rand)", partial=False)


def pfp_partial(settings: PFPSettings) -> SampledPFP:
    """PFP (rand) that always keeps, unscaled, the channels that N draws hit at least once on average."""
    return SampledPFP(settings, "PFP (partial)", partial=True)


@dataclass(frozen=True)
class DrawnChannels:
    """The analysis: the ranking, the time at which each channel is first drawn, and a seed for further draws."""

    ranked: ChannelRanking
    rings: Sequence[Tensor]
    seed: int


@dataclass(frozen=True)
class SampledPFP:
    """Channels drawn with replacement until each group has as many different ones as PFP keeps.

    The columns that read a channel are multiplied by count_c / (N p_c), where N is the time at which the first channel
    that is not kept is drawn. This preserves the expected outputs of layers.

    Source: Liebenwein et al. 2020, https://arxiv.org/abs/1911.07412. Differs: as for PFP; the number of channels is
    exact and the number of draws random (theirs draws a fixed number, which hits a random number of channels).

    Args:
        partial: keep the channels with p_c >= 1 / N, the largest first, and draw only the others; N is the number of
            draws that hit the wanted number of channels on average.
    """

    settings: PFPSettings
    label: str
    partial: bool

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> DrawnChannels:
        """Compute the sensitivities of all channels, and draw the time at which each is first drawn.

        Raises: ConfigError, CompressionError: as for PFP.
        """
        ranked = self._base().analyse(state, calibration, generator)
        p = [probabilities(s, alive) for s, alive in zip(ranked.scores, ranked.filters.alive, strict=True)]
        seed = int(torch.randint(2**62, (), generator=generator))
        return DrawnChannels(ranked, [first_rings(p_C, generator) for p_C in p], seed)

    def plan(self, analysis: DrawnChannels, budget: Budget) -> Plan:
        """Keep the largest network within the budget whose groups share one error.

        Raises: InfeasibleBudget: the smallest one already exceeds the budget.
        """
        filters, scores = analysis.ranked.filters, analysis.ranked.scores

        def choose(group: int, number: int) -> Sequence[int]:
            sure = self._sure(analysis, group, number)
            times = analysis.rings[group].tolist()
            drawn = sorted((c for c in filters.alive[group] if c not in sure), key=times.__getitem__)
            return [*sure, *drawn[: number - len(sure)]]

        counts = _counts(filters, scores, choose, budget, self.settings.round_to)
        plan = filters.plan([choose(g, n) for g, n in enumerate(counts)])
        return replace(plan, scales=self._scales(analysis, counts))

    def fill(self, built: nn.Module, state: State, analysis: DrawnChannels, plan: Plan) -> None:
        """Write the state's weights into `built`, in place, scaled only if they are the ones that were analysed."""
        same = state is analysis.ranked.filters.state
        self._base().fill(built, state, analysis.ranked, plan if same else replace(plan, scales={}))

    def _base(self) -> FilterMethod:
        return FilterMethod(self.settings, self.label, _score(self.settings, self.label), same_error)

    def _sure(self, analysis: DrawnChannels, group: int, number: int) -> Sequence[int]:
        """Those of `number` channels that are kept without being drawn."""
        ranked = analysis.ranked
        alive = ranked.filters.alive[group]
        p_C = probabilities(ranked.scores[group], alive)
        possible = int((p_C > 0).sum())
        if number >= possible:
            return ranked.order[group][:number]
        if not self.partial:
            return ()
        draws = draws_for(p_C[None], torch.tensor([number]))
        sure = int((p_C * draws >= 1).sum())
        return ranked.order[group][: min(sure, number)]

    def _scales(self, analysis: DrawnChannels, counts: Sequence[int]) -> dict[str, Tensor]:
        """Parameter name -> the factors of its weights: those of the channels that they read."""
        filters, scales = analysis.ranked.filters, dict[str, Tensor]()
        network = filters.state.network
        for g, (group, number) in enumerate(zip(filters.groups, counts, strict=True)):
            factors_C = self._factors(analysis, g, number)
            for member in readers(network, group) if bool((factors_C != 1).any()) else ():
                weight = network.get_submodule(member.module).get_parameter("weight")
                scale = scales.setdefault(parameter_name(member.module), torch.ones(weight.shape, device=weight.device))
                columns = torch.tensor(member.positions, device=weight.device)
                by_column = factors_C.to(scale)[:, None].expand(columns.shape)
                shape = (1, -1, *[1] * (weight.dim() - 2))
                scale[:, columns.flatten()] *= by_column.reshape(shape)
        return scales

    def _factors(self, analysis: DrawnChannels, group: int, number: int) -> Tensor:
        """count_c / (N p_c) of the channels that were drawn, 1 for the others: (C,)."""
        ranked, rings_C = analysis.ranked, analysis.rings[group]
        alive, sure = ranked.filters.alive[group], self._sure(analysis, group, number)
        factors_C = torch.ones(len(rings_C), dtype=torch.float64)
        drawn = torch.tensor(sorted(set(alive) - set(sure)))
        if number < len(alive) and number > len(sure):
            drawn = drawn[torch.argsort(rings_C[drawn], stable=True)]
            until, stay = rings_C[drawn[number - len(sure)]], drawn[: number - len(sure)]
            p_C = probabilities(ranked.scores[group], alive)[stay]
            random = stream("PFP", analysis.seed, group, number)
            factors_C[stay] = factors(p_C, rings_C[stay], until.expand(stay.shape), random)
        return factors_C


def same_error(filters: Channels, scores: ChannelScores, budget: Budget, round_to: int) -> list[int]:
    """Count channels by the smallest common eps of all groups that the budget allows."""
    orders = filters.orders(scores)
    return _counts(filters, scores, lambda group, number: orders[group][:number], budget, round_to)


def _counts(filters: Channels, scores: ChannelScores, choose: Choose, budget: Budget, round_to: int) -> list[int]:
    """As many of the steps in which groups grow, in the order of decreasing eps, as the budget allows.

    With `round_to`, a group steps to its next multiple when its number of channels is nearer to that one.
    """
    state = filters.state
    layers = trace_layers(state.network, state.example)
    ladders, steps, steps_of = [], list[tuple[float, float, int]](), filters.steps(round_to)
    for g, (group, alive) in enumerate(zip(filters.groups, filters.alive, strict=True)):
        rungs = ladder(len(alive), steps_of[g]) if filters.free[g] else [len(alive)]
        bounds = [union_bound(layers[m.module]) for m in readers(state.network, group) if m.module in layers]
        largest = errors(scores[g][list(alive)], max(bounds, default=1.0))
        for before, after in itertools.pairwise(rungs):
            middle = (before + after + 1) // 2
            steps.append((-largest[middle - 1], after / len(alive), g))
        ladders.append(rungs)

    def size(counts: Sequence[int]) -> int:
        return filters.size([choose(g, n) for g, n in enumerate(counts)], budget.quantity)

    growing = [group for _, _, group in sorted(steps)]
    return counts_after(ladders, growing[: affordable_steps(ladders, growing, size, budget)])


def errors(s_C: Tensor, alpha: float) -> list[float]:
    """The largest eps at which a group keeps 1, 2, ... channels; 0 where no eps makes it keep that many.

    It keeps k when more than k - 1 are hit on average, which takes at least N draws, and m(eps) >= N when
    K (6 + 2 eps) alpha S / eps^2 > N - 1.
    """
    positive_C = s_C[s_C > 0].double()
    if not len(positive_C):
        return [math.inf, *[0.0] * (len(s_C) - 1)][: len(s_C)]
    S = float(positive_C.sum())
    draws_C = draws_beyond(positive_C / S)
    ratio_C = K * alpha * S / (draws_C - 1)
    found = (ratio_C + (ratio_C**2 + 6 * ratio_C).sqrt()).tolist()
    return [math.inf, *found[1:], *[0.0] * (len(s_C) - len(found))]


def draws_beyond(p_C: Tensor) -> Tensor:
    """For k = 1, 2, ..., C the smallest N with sum_c 1 - (1 - p_c)^N > k - 1: (C,), whole numbers."""
    k_C = torch.arange(1, len(p_C) + 1)
    draws_C = draws_for(p_C.expand(len(p_C), -1), k_C - 1, more=True)
    return torch.maximum(draws_C, k_C.double())  # N draws hit no more than N


def probabilities(s_C: Tensor, alive: Sequence[int]) -> Tensor:
    """The live channels' shares of the total sensitivity; zeros without any."""
    p_C = torch.zeros_like(s_C)
    p_C[list(alive)] = s_C[list(alive)]
    return p_C / p_C.sum().clamp(min=torch.finfo(p_C.dtype).tiny)


def _score(settings: PFPSettings, label: str) -> ScoreChannels:
    """The score of a channel: the maximum sensitivity of all weights that read it."""

    def score(filters: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        inputs, network = calibration_inputs(calibration, filters.state, label), filters.state.network
        weights = {
            member.module: live_weight(network, filters.state.masks, member.module)
            for group, free in zip(filters.groups, filters.free, strict=True)
            for member in (readers(network, group) if free else ())
            if member.module in filters.layers  # not heads that only training calls
        }
        found = weight_sensitivities(network, weights, inputs, "max", settings.positions) if weights else {}
        of_layers = {name: channel_sensitivities(s).cpu() for name, s in found.items()}
        scores = []
        for group, free in zip(filters.groups, filters.free, strict=True):
            s_C = torch.zeros(group.size, dtype=torch.float64)
            for member in [m for m in readers(network, group) if m.module in of_layers] if free else ():
                s_C = torch.maximum(s_C, of_layers[member.module][torch.tensor(member.positions)].amax(1))
            scores.append(s_C)
        return scores

    return score
