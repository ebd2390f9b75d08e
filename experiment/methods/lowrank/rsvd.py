"""RSVD: the ranks of SVD, with factors from randomised SVD, so that no layer is ever decomposed as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.layers.factored_layers import max_rank
from experiment.layers.plan import Plan, State
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration
from experiment.methods.lowrank.base import LowRankLayers, lowrank_layers
from experiment.methods.lowrank.layer_options import channels_to_split, nearest_divisor, slicings
from experiment.methods.lowrank.randomised_spectra import RandomisedSpectra, Sketches
from experiment.methods.lowrank.settings import RSVDSettings
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.methods.lowrank.svd import shares_left
from experiment.methods.starting_state import live_filters
from experiment.random_streams import seed_of

Floats = NDArray[np.float64]


class RSVDAnalysis:
    """The thresholds of the ranks, which do not depend on the weights, and a cache of decompositions.

    Attributes:
        thresholds: one value per option of every layer, 0 for the last option, the unchanged layer.
    """

    def __init__(self, base: LowRankLayers, thresholds: Sequence[Floats], settings: RSVDSettings, seed: int) -> None:
        self.base, self.thresholds = base, thresholds
        self._settings, self._seed = settings, seed
        self._sketches: dict[str, Sketches] = {}  # of every layer; the factors of all ranks follow from them
        self._decomposed: dict[
            tuple[str, int], RandomisedSpectra | LayerSpectra
        ] = {}  # of the latest plan, by layer and rank

    def forget(self) -> None:
        """Drop the decompositions of the latest plan; those of another plan would not fit into memory with them."""
        self._decomposed.clear()

    def of_ranks(self, ranks: Mapping[str, int]) -> LowRankLayers:
        """The layers with randomised spectra of the given ranks only; layers of rank 0 are unchanged."""
        base = self.base

        def spectra_of(name: str, weight: Tensor, sketches: Sketches | None = None) -> RandomisedSpectra | LayerSpectra:
            blocks = base.start.layers[name].groups
            if blocks > 1:  # many small slices
                return LayerSpectra(weight, blocks)
            return RandomisedSpectra(
                weight,
                ranks[name],
                seed_of(self._seed, name),
                oversampling=self._settings.oversampling,
                power_iterations=self._settings.power_iterations,
                sketches=sketches or Sketches(),
            )

        for name, rank in ranks.items():
            if rank and (name, rank) not in self._decomposed:
                weight = live_filters(base.start.network, base.start.masks, name)
                sketches = self._sketches.setdefault(name, Sketches())
                self._decomposed[name, rank] = spectra_of(name, weight, sketches)
        spectra = {name: self._decomposed[name, rank] for name, rank in ranks.items() if rank}
        return replace(base, spectra=spectra, spectra_of=spectra_of)

    def error_bound(self, name: str, rank: int, groups: int, folding: int) -> float:
        """The bound of a layer's relative operator-norm error at a rank of the latest plan."""
        spectra = self._decomposed[name, rank]
        if isinstance(spectra, LayerSpectra):
            return spectra.exact_error(rank, groups, folding)
        return spectra.error_bound(rank, groups, folding)


@dataclass(frozen=True)
class RSVD:
    """The same fraction of the full rank in every layer, as in SVD, and factors from a sketch of the layer's range.

    W, folded, is multiplied by rank + oversampling Gaussian vectors; the SVD of W projected onto their span, cut to the
    rank, gives balanced factors. The time is proportional to the weights times the rank, not to the cube of the
    features. Grouped layers, whose slices are small, are decomposed exactly.

    `relative_error` is an upper bound of the relative operator-norm error that fails with probability 1e-10 and is
    loose by a factor of up to about 8 sqrt(full rank - rank); `relative_error_exact` is the measured error.

    Source: Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061
    """

    settings: RSVDSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> RSVDAnalysis:
        groups, folding = self.settings.groups, self.settings.folding
        base = lowrank_layers(
            state,
            lambda info: slicings(info, (nearest_divisor(channels_to_split(info), groups),), (folding,)),
            self.settings.round_to,
            chosen=self.settings,
        )
        thresholds = []
        for info, options in base.pairs():
            curves = [shares_left(max_rank(info, *slicing))[options.ranks[:-1] - 1] for slicing in options.slicings()]
            thresholds.append(np.append(np.concatenate([np.zeros(0), *curves]), 0.0))  # one slicing, or no option
        return RSVDAnalysis(base, thresholds, self.settings, int(torch.randint(2**62, (), generator=generator)))

    def plan(self, analysis: RSVDAnalysis, budget: Budget) -> Plan:
        """The ranks under the largest share that the budget allows; they are decomposed here, to report the errors."""
        base = analysis.base
        chosen = base.choose(budget, partial(common_threshold, analysis.thresholds))
        if chosen is None:
            return base.plan(None, [])
        indices = dict(zip(base.options, chosen, strict=True))
        ranks = {name: int(options.ranks[indices[name]]) for name, options in base.options.items()}
        analysis.forget()
        base = analysis.of_ranks(ranks)
        errors = []
        for name, options in base.options.items():
            error, i = np.zeros(len(options.ranks)), indices[name]
            if ranks[name]:
                error[i] = analysis.error_bound(name, ranks[name], int(options.groups[i]), int(options.foldings[i]))
            errors.append(error)
        return base.plan(chosen, errors)

    def fill(self, built: nn.Module, state: State, analysis: RSVDAnalysis, plan: Plan) -> None:
        ranks = {name: factors.rank for name, factors in plan.factors.items() if name in analysis.base.options}
        analysis.of_ranks(ranks).fill(built, state, plan)
