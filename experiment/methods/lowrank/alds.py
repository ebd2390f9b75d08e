"""ALDS: the number of groups, the folding and the rank of every layer, chosen for all layers together."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiment.layers.plan import Plan, State
from experiment.methods.allocate import Limits, minimise_maximum, same_share
from experiment.methods.base import Budget, Calibration
from experiment.methods.lowrank.base import LowRankLayers, lowrank_layers
from experiment.methods.lowrank.layer_options import Integers, group_numbers, slicings
from experiment.methods.lowrank.settings import ALDSKSettings, ALDSSettings
from experiment.methods.lowrank.spectra import bound_errors, reference_errors

Floats = NDArray[np.float64]


class ALDSAnalysis:
    """The errors of all options, or lower bounds of them until `settle` computes them; planning updates it.

    Attributes:
        errors: for every layer (number of options,): the error where it is settled, else a lower bound.
    """

    def __init__(self, base: LowRankLayers, error: str) -> None:
        self.base = base
        self.errors = base.curves(bound_errors if error == "bound" else reference_errors)
        self._settled = [(options.groups == 1) | (error != "exact") for options in base.options.values()]

    def settle(self, chosen: list[int]) -> bool:
        """Compute the exact errors of chosen options with known bounds only.

        Returns: whether there were any.
        """
        any_new = False
        layers = zip(self.base.options.items(), self.errors, self._settled, chosen, strict=True)
        for (name, options), errors, settled, index in layers:
            if settled[index]:
                continue
            any_new = settled[index] = True
            slicing = int(options.groups[index]), int(options.foldings[index])
            bounds = self.base.spectra[name].exact_bounds(int(options.ranks[index]), *slicing)
            here = options.of(slicing)
            unsettled = here[~settled[here]]
            errors[unsettled] = np.maximum(errors[unsettled], bounds[options.ranks[unsettled] - 1])
            errors[index] = bounds[options.ranks[index] - 1]
        return any_new


@dataclass(frozen=True)
class ALDS:
    """Automatic layer-wise decomposition selector.

    The input channels of every layer are split into k equal groups; every slice W_i is folded into a matrix
    and gets the same rank j:

        min over (k_l, j_l) of max_l eps_l(k_l, j_l)   subject to   sum_l size_l(k_l, j_l) <= budget,

    with eps the relative operator-norm error, or a bound of it (setting `error`), and k any divisor of the number of
    channels. With several `foldings`, as in ALDS+, the folding of every layer is chosen too. A layer may also remain
    unchanged. A maximum under a limit on a sum is separable, so the global optimum is found exactly.

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442
    Differs: the paper alternates between ranks and groups from random starts, which may end in a local optimum.
    """

    settings: ALDSSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> ALDSAnalysis:
        return ALDSAnalysis(_all_slicings(state, self.settings, generator), self.settings.error)

    def plan(self, analysis: ALDSAnalysis, budget: Budget) -> Plan:
        """The global optimum for the budget; the rest of the budget improves the next worst layers."""

        def choose(costs: list[Integers], limit: Limits) -> list[int]:
            chosen = minimise_maximum(analysis.errors, costs, limit)
            # An optimum among lower bounds whose own errors are settled is the true optimum: no bound promises less
            # than its error. So only the errors of options that look best are ever computed.
            while analysis.settle(chosen):
                chosen = minimise_maximum(analysis.errors, costs, limit)
            return chosen

        return analysis.base.plan(analysis.base.choose(budget, choose), analysis.errors)

    def fill(self, built: nn.Module, state: State, analysis: ALDSAnalysis, plan: Plan) -> None:
        analysis.base.fill(built, state, plan)


@dataclass(frozen=True)
class ALDSK:
    """The same share t of every layer's cost, and within it the option with the smallest error.

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442 (the ablation that optimises k only)
    """

    settings: ALDSKSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> ALDSAnalysis:
        return ALDSAnalysis(_all_slicings(state, self.settings, generator), self.settings.error)

    def plan(self, analysis: ALDSAnalysis, budget: Budget) -> Plan:
        """The options under the largest t that the budget allows."""

        chosen = analysis.base.choose(budget, partial(same_share, analysis.errors))
        return analysis.base.plan(chosen, analysis.errors)

    def fill(self, built: nn.Module, state: State, analysis: ALDSAnalysis, plan: Plan) -> None:
        analysis.base.fill(built, state, plan)


def _all_slicings(state: State, settings: ALDSSettings, generator: torch.Generator) -> LowRankLayers:
    return lowrank_layers(
        state,
        lambda info: slicings(info, group_numbers(info, settings.min_group_width), settings.foldings),
        settings.round_to,
        chosen=settings,
        randomised_above=settings.randomised_above,
        generator=generator,
    )
