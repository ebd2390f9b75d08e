"""Truncated SVD of every layer, y = U(Vx) + b, with ranks from one threshold that all layers share.

A weight W, folded channel-wise to (F, C * X * Y), becomes U_J S_J V_J^T, its best approximation of rank J
(Eckart-Young). The three methods differ by what is the same in all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiment.layers.lowrank import max_rank
from experiment.layers.plan import Plan, State
from experiment.methods import lowrank
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration
from experiment.methods.lowrank import LowRank
from experiment.methods.settings import SVDEnergySettings, SVDErrorSettings, SVDSettings
from experiment.methods.spectra import energy_errors, reference_errors

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """The analysis: for every layer, one value an option.

    Attributes:
        thresholds: what one common threshold cuts; non-increasing.
        errors: what is reported as relative error; 0 for the last option, the layer as it is.
    """

    base: LowRank
    thresholds: tuple[Floats, ...]
    errors: tuple[Floats, ...]


@dataclass(frozen=True)
class SVD:
    """The same share t of the full rank in every layer: rank round(t * min(F, C * X * Y)), at least 1.

    `relative_error` is that of SVD-Error.

    Source: Denton et al. 2014, https://arxiv.org/abs/1404.0736
    """

    settings: SVDSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Curves:
        """Spectra of all layers."""
        base = lowrank.analyse(state, _undivided)
        return Curves(base, _per_option(base, _rank_left), _per_option(base, _operator))

    def plan(self, analysis: Curves, budget: Budget) -> Plan:
        """The largest t that the budget allows.

        Raises: InfeasibleBudget: rank 1 everywhere is still too much.
        """
        return _plan(analysis, budget)

    def fill(self, built: nn.Module, state: State, analysis: Curves, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        lowrank.fill(built, state, analysis.base, plan)


@dataclass(frozen=True)
class SVDEnergy:
    """At most the same share of the energy lost in every layer: sum_{i>J} sigma_i^2 / ||W||_F^2 <= t.

    Source: Wen et al. 2017, https://arxiv.org/abs/1703.09746 (the choice of ranks, without training towards low rank)
    """

    settings: SVDEnergySettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Curves:
        """Spectra of all layers."""
        base = lowrank.analyse(state, _undivided)
        curves = _per_option(base, _energy)
        return Curves(base, curves, curves)

    def plan(self, analysis: Curves, budget: Budget) -> Plan:
        """The smallest t that the budget allows.

        Raises: InfeasibleBudget: rank 1 everywhere is still too much.
        """
        return _plan(analysis, budget)

    def fill(self, built: nn.Module, state: State, analysis: Curves, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        lowrank.fill(built, state, analysis.base, plan)


@dataclass(frozen=True)
class SVDError:
    """At most the same relative error in every layer: ||W - W_J||_2 / ||W||_2 = sigma_{J+1} / sigma_1 <= t.

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442 (ALDS with one group in every layer)
    """

    settings: SVDErrorSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Curves:
        """Spectra of all layers."""
        base = lowrank.analyse(state, _undivided)
        curves = _per_option(base, _operator)
        return Curves(base, curves, curves)

    def plan(self, analysis: Curves, budget: Budget) -> Plan:
        """The smallest t that the budget allows.

        Raises: InfeasibleBudget: rank 1 everywhere is still too much.
        """
        return _plan(analysis, budget)

    def fill(self, built: nn.Module, state: State, analysis: Curves, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        lowrank.fill(built, state, analysis.base, plan)


def _plan(analysis: Curves, budget: Budget) -> Plan:
    base = analysis.base
    if base.start.allows(budget):
        return lowrank.unchanged(base)
    chosen = common_threshold(analysis.thresholds, base.costs(budget.quantity), base.limit(budget))
    return lowrank.make_plan(base, chosen, analysis.errors)


def _undivided(channels: int) -> tuple[int, ...]:
    return (1,)


def _per_option(base: LowRank, curve: Callable[[LowRank, str], Floats]) -> tuple[Floats, ...]:
    """A curve over ranks 1, 2, ... of every layer, cut to the ranks that are options, and 0 for the layer itself."""
    return tuple(np.append(curve(base, name)[options.ranks[:-1] - 1], 0.0) for name, options in base.options.items())


def _rank_left(base: LowRank, name: str) -> Floats:
    """1 - t at which round(t * full) goes beyond rank j; equal fractions give equal floats, so ties are seen."""
    full = max_rank(base.start.layers[name])
    ranks = np.arange(1, full + 1)
    return (2 * (full - ranks) - 1) / (2.0 * full)


def _operator(base: LowRank, name: str) -> Floats:
    return reference_errors(base.spectra[name], 1)


def _energy(base: LowRank, name: str) -> Floats:
    return energy_errors(base.spectra[name])
