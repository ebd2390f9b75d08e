"""RSVD: the ranks of SVD, with factors from randomised SVD, so that nothing is ever decomposed whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.layers.factored_layers import max_rank
from experiment.layers.plan import Plan, State
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration
from experiment.methods.lowrank import layer_options
from experiment.methods.lowrank.layer_options import LowRank, nearest_divisor, slicings
from experiment.methods.lowrank.randomised_spectra import RandomisedSpectra, Sketches
from experiment.methods.lowrank.settings import RSVDSettings
from experiment.methods.lowrank.svd import shares_left
from experiment.methods.starting_state import live_weight
from experiment.random_streams import seed_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """The analysis: what the ranks follow from, which the weights' values have no part in.

    Attributes:
        thresholds: for every layer one value an option, 0 for the last one, the layer as it is.
        seed: of all Gaussians, with the layer's name.
        sketches: of every layer, in a few sizes, from which the factors of all ranks follow.
        chosen: the decompositions of the plan made last, for `fill`: another plan's are computed again, and equal.
    """

    base: LowRank
    thresholds: Sequence[Floats]
    seed: int
    sketches: dict[str, Sketches] = field(default_factory=dict)
    chosen: dict[tuple[str, int], RandomisedSpectra] = field(default_factory=dict)


@dataclass(frozen=True)
class RSVD:
    """The same share of the full rank in every layer, as SVD, and factors from a sketch of the layer's range.

    W, folded, is multiplied with rank + oversampling Gaussian vectors; the SVD of what W leaves in their span, cut to
    the rank, gives balanced factors. Time goes with the weights times the rank, not with the cube of the features.

    `relative_error` is a bound of the relative operator-norm error that fails with probability 1e-10 and is loose by a
    factor of up to about 8 sqrt(full rank - rank); `relative_error_exact` is the same error measured.

    Source: Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061
    """

    settings: RSVDSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Ranks:
        """The layers' options; no weight is decomposed."""
        base = layer_options.analyse(
            state,
            lambda info: slicings(
                info, (nearest_divisor(info.in_features, self.settings.groups),), (self.settings.folding,)
            ),
            self.settings.round_to,
            layers=self.settings.layers,
        )
        thresholds = []
        for info, options in base.pairs():
            curves = [shares_left(max_rank(info, *slicing))[options.ranks[:-1] - 1] for slicing in options.slicings()]
            thresholds.append(np.append(np.concatenate([np.zeros(0), *curves]), 0.0))  # one slicing, or no option
        return Ranks(base, thresholds, int(torch.randint(2**62, (), generator=generator)))

    def plan(self, analysis: Ranks, budget: Budget) -> Plan:
        """The largest share that the budget allows; the chosen ranks are decomposed here, for the errors to tell.

        Raises: InfeasibleBudget: the smallest rank everywhere is still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return layer_options.unchanged(base)
        chosen = common_threshold(analysis.thresholds, base.costs(budget.quantity), base.limit(budget))
        pairs = list(zip(base.options.items(), chosen, strict=True))
        analysis.chosen.clear()
        ranks = {name: int(options.ranks[i]) for (name, options), i in pairs}
        base = self._sketched(analysis, ranks)
        errors = [np.zeros(len(options.ranks)) for options in base.options.values()]
        for (name, options), i, error in zip(base.options.items(), chosen, errors, strict=True):
            if ranks[name]:
                spectra = analysis.chosen[name, ranks[name]]
                error[i] = spectra.error_bound(ranks[name], int(options.groups[i]), int(options.foldings[i]))
        return layer_options.make_plan(base, chosen, errors)

    def fill(self, built: nn.Module, state: State, analysis: Ranks, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        ranks = {name: factors.rank for name, factors in plan.factors.items()}
        layer_options.fill(built, state, self._sketched(analysis, ranks), plan)

    def _sketched(self, analysis: Ranks, ranks: Mapping[str, int]) -> LowRank:
        """The analysis with randomised spectra of just these ranks; rank 0 is a layer that stays."""
        base = analysis.base

        def spectra_of(name: str, weight: Tensor, sketches: Sketches | None = None) -> RandomisedSpectra:
            return RandomisedSpectra(
                weight, ranks[name], seed_of(analysis.seed, name), oversampling=self.settings.oversampling,
                power_iterations=self.settings.power_iterations, sketches=sketches or Sketches(),
            )  # fmt: skip

        for name, rank in ranks.items():
            if rank and (name, rank) not in analysis.chosen:
                weight = live_weight(base.start.network, base.start.masks, name)
                analysis.chosen[name, rank] = spectra_of(name, weight, analysis.sketches.setdefault(name, Sketches()))
        spectra = {name: analysis.chosen[name, rank] for name, rank in ranks.items() if rank}
        return replace(base, spectra=spectra, spectra_of=spectra_of)
