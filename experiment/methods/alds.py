"""ALDS: for all layers together, how many groups and which rank minimise the largest relative error of any layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiment.layers.plan import Plan, State
from experiment.methods import lowrank
from experiment.methods.allocate import minimise_maximum
from experiment.methods.base import Budget, Calibration
from experiment.methods.lowrank import LowRank
from experiment.methods.settings import ALDSSettings
from experiment.methods.spectra import reference_errors

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """The analysis: what is known of the error of every layer's every option.

    Attributes:
        values: for every layer (number of options,): the error where it is settled, else a lower bound of it.
        settled: for every layer (number of options,).
    """

    base: LowRank
    values: list[Floats] = field(default_factory=list)
    settled: list[NDArray[np.bool_]] = field(default_factory=list)


@dataclass(frozen=True)
class ALDS:
    """Automatic layer-wise decomposition selector.

    The input channels of every layer are split into k equal groups, and every slice W_i gets the same rank j:

        min over (k_l, j_l) of max_l eps_l(k_l, j_l)   subject to   sum_l size_l(k_l, j_l) <= budget,

    with eps the relative operator-norm error, or a bound of it (`ALDSSettings.error`), and k any divisor of the
    channels. A layer may also stay as it is. The sum and the maximum make the problem separable, so the global optimum
    is found exactly (`minimise_maximum`).

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442
    Differs: the paper alternates between ranks and groups from random starts, which may end in a local optimum.
    """

    settings: ALDSSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Errors:
        """Spectra of all layers for all numbers of groups."""
        analysis = Errors(lowrank.analyse(state, divisors))
        for name, options in analysis.base.options.items():
            spectra = analysis.base.spectra[name]
            ks = np.unique(options.groups).tolist()
            spectra.prepare(ks)
            values = np.zeros(len(options.ranks))
            for k in ks:
                here = (options.groups == k) & (options.ranks > 0)
                values[here] = reference_errors(spectra, k)[options.ranks[here] - 1]
            if self.settings.error == "bound":
                values *= np.sqrt(options.groups)
            analysis.values.append(values)
            analysis.settled.append((options.groups == 1) | (self.settings.error != "exact"))
        return analysis

    def plan(self, analysis: Errors, budget: Budget) -> Plan:
        """The global optimum for the budget; what is left of it makes the next worst layers better.

        Raises: InfeasibleBudget: the smallest options are still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return lowrank.unchanged(base)
        costs, limit = base.costs(budget.quantity), base.limit(budget)
        chosen = minimise_maximum(analysis.values, costs, limit)
        # Lower bounds promise at least as much as can be had: an optimum among them whose own errors are settled is the
        # true one. So only the errors of options that look best are ever computed.
        while _settle(analysis, chosen):
            chosen = minimise_maximum(analysis.values, costs, limit)
        return lowrank.make_plan(base, chosen, analysis.values)

    def fill(self, built: nn.Module, state: State, analysis: Errors, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        lowrank.fill(built, state, analysis.base, plan)


def divisors(number: int) -> list[int]:
    """All divisors, rising."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def _settle(analysis: Errors, chosen: list[int]) -> bool:
    """Compute the exact errors of the chosen options where only bounds are known; whether there were any."""
    any_new = False
    layers = zip(analysis.base.options.items(), analysis.values, analysis.settled, chosen, strict=True)
    for (name, options), values, settled, index in layers:
        if settled[index]:
            continue
        any_new = settled[index] = True
        groups = int(options.groups[index])
        bounds = analysis.base.spectra[name].exact_bounds(int(options.ranks[index]), groups)
        open_ones = (options.groups == groups) & (options.ranks > 0) & ~settled
        values[open_ones] = np.maximum(values[open_ones], bounds[options.ranks[open_ones] - 1])
        values[index] = bounds[options.ranks[index] - 1]
    return any_new
