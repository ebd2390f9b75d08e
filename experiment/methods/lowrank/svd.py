"""Truncated SVD of every layer, y = U(Vx) + b, with ranks from one threshold that all layers share.

A weight W, folded and, with more than one group, sliced, becomes U_J S_J V_J^T, its best approximation of rank J
(Eckart-Young). The methods differ by what is the same in all layers, and by the numbers of groups and the folding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiment.layers.factored_layers import flops
from experiment.layers.plan import Plan, State
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration
from experiment.methods.lowrank import layer_options
from experiment.methods.lowrank.layer_options import LowRank, nearest_divisor, slicings
from experiment.methods.lowrank.spectra import Spectra, energy_errors, nuclear_errors, reference_errors
from experiment.methods.settings import (
    ALDSError3Settings,
    ALDSSimple3Settings,
    ALDSSimple5Settings,
    LRankScheme1Settings,
    LRankSettings,
    SVDEnergySettings,
    SVDErrorSettings,
    SVDNuclearSettings,
    SVDSettings,
)

Floats = NDArray[np.float64]


class Curve(Protocol):
    """From a layer's spectra to one value a rank, from rank 1 to at least `top_rank`, non-increasing."""

    def __call__(self, spectra: Spectra, groups: int, folding: int) -> Floats: ...


@dataclass(frozen=True)
class Analysis:
    """For every layer one value an option, 0 for the last one, the layer as it is.

    Attributes:
        thresholds: what one common threshold cuts; non-increasing.
        errors: what is reported as relative error.
    """

    base: LowRank
    thresholds: Sequence[Floats]
    errors: Sequence[Floats]


@dataclass(frozen=True)
class CommonThreshold:
    """In every layer the smallest rank whose curve is at most t; t is the same in all, and as low as the budget allows.

    Attributes:
        groups, folding, round_to, layers, randomised_above: see `experiment.methods.settings.lowrank`.
        curve: what t is compared with.
        error: what is reported as relative error.
        per_flop: divide the curve by the multiply-adds that one rank costs.
    """

    groups: int
    folding: int
    round_to: int
    curve: Curve
    error: Curve
    per_flop: bool = False
    layers: Sequence[str] | None = None
    randomised_above: int | None = None

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Analysis:
        """Spectra of all layers."""
        base = layer_options.analyse(
            state,
            lambda info: slicings(info, (nearest_divisor(info.in_features, self.groups),), (self.folding,)),
            self.round_to,
            layers=self.layers,
            randomised_above=self.randomised_above,
            generator=generator,
        )
        thresholds = base.curves(self.curve)
        errors = thresholds if self.error == self.curve else base.curves(self.error)
        if self.per_flop:
            work = [flops(info, 1, *o.slicings()[0]) if o.slicings() else 1 for info, o in base.pairs()]
            thresholds = [values / per_rank for values, per_rank in zip(thresholds, work, strict=True)]
        return Analysis(base, thresholds, errors)

    def plan(self, analysis: Analysis, budget: Budget) -> Plan:
        """The lowest t that the budget allows.

        Raises: InfeasibleBudget: the smallest rank everywhere is still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return layer_options.unchanged(base)
        chosen = common_threshold(analysis.thresholds, base.costs(budget.quantity), base.limit(budget))
        return layer_options.make_plan(base, chosen, analysis.errors)

    def fill(self, built: nn.Module, state: State, analysis: Analysis, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        layer_options.fill(built, state, analysis.base, plan)


def svd(settings: SVDSettings | ALDSSimple3Settings | ALDSSimple5Settings) -> CommonThreshold:
    """The same share t of the full rank S in every layer: rank round(t * S), at least 1.

    `relative_error` is that of SVD-Error.

    Source: Denton et al. 2014, https://arxiv.org/abs/1404.0736; with more groups than one the ablation ALDS-Simple of
    Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442
    """
    return CommonThreshold(
        settings.groups,
        settings.folding,
        settings.round_to,
        _rank_left,
        reference_errors,
        layers=settings.layers,
        randomised_above=settings.randomised_above,
    )


def svd_energy(settings: SVDEnergySettings) -> CommonThreshold:
    """At most the same share of the energy lost in every layer: sum_{i>J} sigma_i^2 / ||W||_F^2 <= t.

    Source: Wen et al. 2017, https://arxiv.org/abs/1703.09746 (the choice of ranks, without training towards low rank)
    """
    return CommonThreshold(
        settings.groups,
        settings.folding,
        settings.round_to,
        energy_errors,
        energy_errors,
        layers=settings.layers,
        randomised_above=settings.randomised_above,
    )


def svd_nuclear(settings: SVDNuclearSettings) -> CommonThreshold:
    """At most the same share of the nuclear norm lost in every layer: sum_{i>J} sigma_i / ||W||_* <= t.

    Source: Alvarez and Salzmann 2017, https://arxiv.org/abs/1711.02638 (the choice of ranks, without their training)
    """
    return CommonThreshold(
        settings.groups,
        settings.folding,
        settings.round_to,
        nuclear_errors,
        nuclear_errors,
        layers=settings.layers,
    )


def svd_error(settings: SVDErrorSettings | ALDSError3Settings) -> CommonThreshold:
    """At most the same relative error in every layer: the slices' sigma_{J+1} / ||W||_2 <= t.

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442 (ALDS without its choice of groups)
    """
    return CommonThreshold(
        settings.groups,
        settings.folding,
        settings.round_to,
        reference_errors,
        reference_errors,
        layers=settings.layers,
        randomised_above=settings.randomised_above,
    )


def l_rank(settings: LRankSettings | LRankScheme1Settings) -> CommonThreshold:
    """min over ranks J_l of sum_l (lambda C_l(J_l) + sum_{i>J_l} sigma_{l,i}^2), C_l(J) the multiply-adds of rank J.

    C is linear in J, so that sigma_{l,i} stays iff sigma_{l,i}^2 > lambda C_l(1): a common threshold on squared
    singular values a multiply-add. `relative_error` is that of SVD-Energy.

    Source: Idelbayev and Carreira-Perpinan 2020, "Low-rank compression of neural nets: learning the rank of each layer"
    (CVPR; the choice of ranks for given weights, without the training that alternates with it)
    """
    return CommonThreshold(
        1,
        settings.folding,
        settings.round_to,
        _next_square,
        energy_errors,
        per_flop=True,
        layers=settings.layers,
        randomised_above=settings.randomised_above,
    )


def shares_left(full: int) -> Floats:
    """1 - t at which round(t * full) goes beyond rank j; equal fractions give equal floats, so ties are seen."""
    ranks = np.arange(1, full + 1)
    return (2 * (full - ranks) - 1) / (2.0 * full)


def _rank_left(spectra: Spectra, groups: int, folding: int) -> Floats:
    return shares_left(spectra.full_rank(groups, folding))


def _next_square(spectra: Spectra, groups: int, folding: int) -> Floats:
    """sigma_{j+1}^2, what the next rank would add."""
    return np.append(np.square(spectra.values(groups, folding)).sum(axis=0)[1:], 0.0)
