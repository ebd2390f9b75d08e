"""Truncated SVD of every layer, y = U(Vx) + b, with the ranks of all layers set by one threshold.

A weight W, folded and, with more than one group, sliced, becomes U_J S_J V_J^T, its best approximation of rank J
(Eckart-Young). The methods differ in the quantity that is the same in all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiment.layers.factored_layers import flops, parameters
from experiment.layers.plan import Plan, State
from experiment.methods.allocate import Limits, common_threshold
from experiment.methods.base import Budget, Calibration, Quantity
from experiment.methods.lowrank.base import LowRankLayers, lowrank_layers
from experiment.methods.lowrank.layer_options import Integers, channels_to_split, nearest_divisor, slicings
from experiment.methods.lowrank.settings import LRankSettings, SlicedSettings, SVDSettings
from experiment.methods.lowrank.spectra import Spectra, energy_errors, lost_energies, nuclear_errors, reference_errors

Floats = NDArray[np.float64]


class Curve(Protocol):
    """From a layer's spectra to one value per rank, from rank 1 to at least `top_rank`, non-increasing."""

    def __call__(self, spectra: Spectra, groups: int, folding: int) -> Floats: ...


@dataclass(frozen=True)
class ThresholdAnalysis:
    """One value per option of every layer, 0 for the last option, the unchanged layer.

    Attributes:
        thresholds: what the common threshold is compared with; non-increasing.
        errors: reported as relative error.
        losses: squared errors, only if there is a price.
    """

    base: LowRankLayers
    thresholds: Sequence[Floats]
    errors: Sequence[Floats]
    losses: Sequence[Floats] = ()


@dataclass(frozen=True)
class CommonThreshold:
    """In every layer the smallest rank whose curve is at most t, one t for all layers, as low as the budget allows.

    Attributes:
        curve: what t is compared with.
        error: what is reported as relative error.
        cost: divide the curve by the multiply-adds or parameters of one rank.
        price: of one of them. Then a layer has at most the rank that is best at this price.
    """

    settings: SVDSettings
    curve: Curve
    error: Curve
    cost: Quantity | None = None
    price: float | None = None

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> ThresholdAnalysis:
        groups, folding = self.settings.groups, self.settings.folding
        base = lowrank_layers(
            state,
            lambda info: slicings(info, (nearest_divisor(channels_to_split(info), groups),), (folding,)),
            self.settings.round_to,
            chosen=self.settings,
            randomised_above=self.settings.randomised_above,
            generator=generator,
        )
        thresholds = base.curves(self.curve)
        errors = thresholds if self.error == self.curve else base.curves(self.error)
        if self.cost is not None:
            cost = {"flops": flops, "parameters": parameters}[self.cost]
            work = [cost(info, 1, *o.slicings()[0]) if o.slicings() else 1 for info, o in base.pairs()]
            thresholds = [values / per_rank for values, per_rank in zip(thresholds, work, strict=True)]
        return ThresholdAnalysis(base, thresholds, errors, () if self.price is None else base.curves(lost_energies))

    def plan(self, analysis: ThresholdAnalysis, budget: Budget) -> Plan:
        """The ranks under the lowest t that the budget allows, or fewer where the price asks for fewer."""
        base, thresholds = analysis.base, analysis.thresholds
        if self.price is None:
            return base.plan(base.choose(budget, partial(common_threshold, thresholds)), analysis.errors)
        most = self._best_at_price(analysis, budget.error_weight)

        def rule(costs: list[Integers], limits: Limits) -> list[int]:
            curves = [curve[: last + 1] for curve, last in zip(thresholds, most, strict=True)]
            return common_threshold(
                curves, [cost[..., : last + 1] for cost, last in zip(costs, most, strict=True)], limits
            )

        chosen = base.choose(budget, rule)
        return base.plan(most if chosen is None else chosen, analysis.errors)

    def _best_at_price(self, analysis: ThresholdAnalysis, mu: float) -> list[int]:
        """In every layer the option with the smallest price C + mu/2 error; the layer itself has no error."""
        assert self.price is not None
        assert self.cost is not None
        costs = [options.costs[self.cost] for options in analysis.base.options.values()]
        pairs = zip(costs, analysis.losses, strict=True)
        return [int(np.argmin(self.price * cost + mu / 2 * loss)) for cost, loss in pairs]

    def fill(self, built: nn.Module, state: State, analysis: ThresholdAnalysis, plan: Plan) -> None:
        analysis.base.fill(built, state, plan)


def svd(settings: SVDSettings) -> CommonThreshold:
    """The same fraction t of the full rank S in every layer: rank round(t * S), at least 1.

    `relative_error` is that of SVD-Error.

    Source: Denton et al. 2014, https://arxiv.org/abs/1404.0736; with several groups, the ablation ALDS-Simple of
    Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442
    """
    return CommonThreshold(settings, _rank_left, reference_errors)


def svd_energy(settings: SVDSettings) -> CommonThreshold:
    """At most the same share of the energy lost in every layer: sum_{i>J} sigma_i^2 / ||W||_F^2 <= t.

    Source: Wen et al. 2017, https://arxiv.org/abs/1703.09746 (the choice of ranks, without training towards low rank)
    """
    return CommonThreshold(settings, energy_errors, energy_errors)


def svd_nuclear(settings: SlicedSettings) -> CommonThreshold:
    """At most the same share of the nuclear norm lost in every layer: sum_{i>J} sigma_i / ||W||_* <= t.

    All singular values are needed, so there is no setting `randomised_above`.

    Source: Alvarez and Salzmann 2017, https://arxiv.org/abs/1711.02638 (the choice of ranks, without their training)
    """
    return CommonThreshold(SVDSettings(**vars(settings)), nuclear_errors, nuclear_errors)


def svd_error(settings: SVDSettings) -> CommonThreshold:
    """At most the same relative error in every layer: the slices' sigma_{J+1} / ||W||_2 <= t.

    Source: Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442 (ALDS without its choice of groups)
    """
    return CommonThreshold(settings, reference_errors, reference_errors)


def l_rank(settings: LRankSettings) -> CommonThreshold:
    """The singular values of the whole network that are largest relative to what they cost.

    min over ranks J_l of sum_l (lambda C_l(J_l) + mu/2 sum_{i>J_l} sigma_{l,i}^2), C_l(J) the multiply-adds or
    parameters of rank J, or of the layer itself, which has no error. C is linear in J, so sigma_{l,i} is kept iff
    mu/2 sigma_{l,i}^2 > lambda C_l(1): a common threshold on squared singular values per cost. `relative_error` is that
    of SVD-Energy.

    Without a price lambda is the smallest that the budget allows, whatever mu. With a price mu is 1, and in mode `lc`
    that of the step, the first one for direct compression; the budget may leave less than the price does.

    Source: Idelbayev and Carreira-Perpinan 2020, "Low-rank compression of neural nets: learning the rank of each layer"
    (CVPR; the choice of ranks for given weights; with a price in mode `lc` also the training that alternates with it)
    """
    shared = {key: value for key, value in vars(settings).items() if key not in ("cost", "price")}
    return CommonThreshold(SVDSettings(**shared), _next_square, energy_errors, settings.cost, settings.price)


def shares_left(full: int) -> Floats:
    """The values of 1 - t at which round(t * full) exceeds rank j = 1 to full; equal fractions give equal floats."""
    ranks = np.arange(1, full + 1)
    return (2 * (full - ranks) - 1) / (2.0 * full)


def _rank_left(spectra: Spectra, groups: int, folding: int) -> Floats:
    return shares_left(spectra.full_rank(groups, folding))


def _next_square(spectra: Spectra, groups: int, folding: int) -> Floats:
    """sigma_{j+1}^2, what the next rank would add."""
    return np.append(np.square(spectra.values(groups, folding)).sum(axis=0)[1:], 0.0)
