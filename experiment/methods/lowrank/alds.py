"""ALDS: how many groups, which folding and which rank every layer gets, chosen for all layers together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiment.layers.plan import Plan, State
from experiment.methods.allocate import common_threshold, front, minimise_maximum
from experiment.methods.base import Budget, Calibration
from experiment.methods.lowrank import layer_options
from experiment.methods.lowrank.layer_options import LowRank, group_numbers, slicings
from experiment.methods.lowrank.settings import ALDSKSettings, ALDSSettings
from experiment.methods.lowrank.spectra import bound_errors, reference_errors

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """The analysis: what is known of the error of every layer's every option.

    Attributes:
        values: for every layer (number of options,): the error where it is settled, else a lower bound of it.
        settled: for every layer (number of options,).
    """

    base: LowRank
    values: list[Floats]
    settled: list[NDArray[np.bool_]]


@dataclass(frozen=True)
class ALDS:
    """Automatic layer-wise decomposition selector.

    The input channels of every layer are split into k equal groups, every slice W_i is folded into a matrix
    (`ALDSSettings.foldings`) and gets the same rank j:

        min over (k_l, j_l) of max_l eps_l(k_l, j_l)   subject to   sum_l size_l(k_l, j_l) <= budget,

    with eps the relative operator-norm error, or a bound of it (`ALDSSettings.error`), and k any divisor of the
    channels; ALDS+ also chooses the folding of every layer. A layer may also stay as it is. The sum and the maximum
    make the problem separable, so the global optimum is found exactly (`minimise_maximum`).

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442
    Differs: the paper alternates between ranks and groups from random starts, which may end in a local optimum.
    """

    settings: ALDSSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Errors:
        """Spectra of all layers for all numbers of groups."""
        settings = self.settings
        base = _all_groups(state, settings, generator)
        values = base.curves(bound_errors if settings.error == "bound" else reference_errors)
        settled = [(o.groups == 1) | (settings.error != "exact") for o in base.options.values()]
        return Errors(base, values, settled)

    def plan(self, analysis: Errors, budget: Budget) -> Plan:
        """The global optimum for the budget; what is left of it makes the next worst layers better.

        Raises: InfeasibleBudget: the smallest options are still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return layer_options.unchanged(base)
        costs, limit = base.costs(budget.quantity), base.limit(budget)
        chosen = minimise_maximum(analysis.values, costs, limit)
        # Lower bounds promise at least as much as can be had: an optimum among them whose own errors are settled is the
        # true one. So only the errors of options that look best are ever computed.
        while _settle(analysis, chosen):
            chosen = minimise_maximum(analysis.values, costs, limit)
        return layer_options.make_plan(base, chosen, analysis.values)

    def fill(self, built: nn.Module, state: State, analysis: Errors, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        layer_options.fill(built, state, analysis.base, plan)


@dataclass(frozen=True)
class ALDSK:
    """Of all options that cost a layer at most the share t of what it costs, that of the smallest error; t for all.

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442 (the ablation that only optimises k)
    """

    settings: ALDSKSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Errors:
        """Spectra of all layers for all numbers of groups."""
        base = _all_groups(state, self.settings, generator)
        values = base.curves(bound_errors if self.settings.error == "bound" else reference_errors)
        return Errors(base, values, [np.ones(len(v), dtype=bool) for v in values])

    def plan(self, analysis: Errors, budget: Budget) -> Plan:
        """The largest t that the budget allows.

        Raises: InfeasibleBudget: the smallest options are still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return layer_options.unchanged(base)
        costs, limit = base.costs(budget.quantity), base.limit(budget)
        fronts = [front(error, cost) for error, cost in zip(analysis.values, costs, strict=True)]
        rising = [cost[best] for cost, best in zip(costs, fronts, strict=True)]
        until = [-np.append(cost[1:], cost[-1]) / cost[-1] for cost in rising]  # -t at which the next option fits
        chosen = common_threshold(until, rising, limit)
        return layer_options.make_plan(
            base, [int(best[i]) for best, i in zip(fronts, chosen, strict=True)], analysis.values
        )

    def fill(self, built: nn.Module, state: State, analysis: Errors, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        layer_options.fill(built, state, analysis.base, plan)


def _all_groups(state: State, settings: ALDSSettings, generator: torch.Generator) -> LowRank:
    """Every number of groups under every folding."""
    return layer_options.analyse(
        state,
        lambda info: slicings(info, group_numbers(info, settings.min_group_width), settings.foldings),
        settings.round_to,
        layers=settings.layers,
        randomised_above=settings.randomised_above,
        generator=generator,
    )


def _settle(analysis: Errors, chosen: list[int]) -> bool:
    """Compute the exact errors of the chosen options where only bounds are known; whether there were any."""
    any_new = False
    layers = zip(analysis.base.options.items(), analysis.values, analysis.settled, chosen, strict=True)
    for (name, options), values, settled, index in layers:
        if settled[index]:
            continue
        any_new = settled[index] = True
        slicing = int(options.groups[index]), int(options.foldings[index])
        bounds = analysis.base.spectra[name].exact_bounds(int(options.ranks[index]), *slicing)
        here = options.of(slicing)
        open_ones = here[~settled[here]]
        values[open_ones] = np.maximum(values[open_ones], bounds[options.ranks[open_ones] - 1])
        values[index] = bounds[options.ranks[index] - 1]
    return any_new
