"""PCA: every layer's responses, projected onto the directions of largest variance.

Shape suffixes: F = filters (output features), N = columns of the folded weight, J = rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.layers.build import write_whole
from experiment.layers.factored_layers import flops, fold, write_factors
from experiment.layers.masks import write_parameter
from experiment.layers.plan import Factors, Plan, State
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration, calibration_inputs
from experiment.methods.data.responses import Responses, gather, precise
from experiment.methods.lowrank.base import LowRankLayers, lowrank_layers
from experiment.methods.lowrank.settings import PCASettings
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.methods.starting_state import factored_layers, live_weight

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PCAAnalysis:
    """The layers' responses to the calibration data.

    Attributes:
        responses: layer name -> the moments of its responses.
        directions: layer name -> U (F, F), eigenvectors of the responses' covariance, the largest variance first.
        thresholds, errors: one value per option of every layer, 0 for the last option, the unchanged layer.
    """

    base: LowRankLayers
    responses: Mapping[str, Responses]
    directions: Mapping[str, Tensor]
    thresholds: Sequence[Floats]
    errors: Sequence[Floats]


@dataclass(frozen=True)
class PCA:
    """y = W x + b becomes y = U U^T W x + b', with U the first J eigenvectors of the responses' covariance.

    With m the mean response, b' = m + U U^T (b - m), so the part outside the span of U stays at its mean. The mean
    squared error of the responses is then the sum of the discarded eigenvalues, the minimum for that rank;
    `relative_error` is its share of the sum of all eigenvalues. A layer without a bias gains one, which counts.

    The objective is the product over layers of the sums of kept eigenvalues. Direction j increases its layer's sum by
    the fraction lambda_j / sum_{a<=j} lambda_a; divided by the multiply-adds of one rank, that is its score. Directions
    with a score above t are kept, at least one per layer, with one t for all layers as low as the budget allows. Scores
    never increase with j.

    Other weights than those analysed (rewinding) are projected onto the same U, and m is their response to the analysed
    network's mean inputs.

    Source: Zhang et al. 2015, https://arxiv.org/abs/1505.06798
    Differs: the linear variant only, without the nonlinearity and without correcting for errors of earlier layers.
    """

    settings: PCASettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> PCAAnalysis:
        """The principal directions of all layers' responses, in one pass over the calibration data.

        Raises: CompressionError: there are no calibration data, or responses are NaN or infinite.
        """
        inputs = calibration_inputs(calibration, state, "PCA")
        base = lowrank_layers(
            state, lambda info: [(1, 0)], self.settings.round_to, layers=self.settings.layers, with_bias=True
        )
        responses = gather(base.start.network, base.options, inputs)
        directions, thresholds, errors = {}, [], []
        for (name, options), (info, _) in zip(base.options.items(), base.pairs(), strict=True):
            values, vectors = torch.linalg.eigh(responses[name].covariance)
            directions[name] = vectors.flip(-1)
            variances = values.flip(-1).cpu().numpy()
            variances = np.where(variances > responses[name].rounding, variances, 0.0)
            ranks = options.ranks[:-1]
            thresholds.append(np.append(next_scores(variances)[ranks - 1] / flops(info, 1), 0.0))
            errors.append(np.append(discarded(variances)[ranks - 1], 0.0))
        return PCAAnalysis(base, responses, directions, thresholds, errors)

    def plan(self, analysis: PCAAnalysis, budget: Budget) -> Plan:
        """The ranks under the lowest t that the budget allows."""
        base = analysis.base

        def exact_error(name: str, factors: Factors) -> float:
            weight = precise(live_weight(base.start.network, base.start.masks, name))
            left_out = analysis.directions[name][:, factors.rank :].T @ fold(weight)[0]
            return LayerSpectra(left_out).norm() / (LayerSpectra(weight).norm() or 1.0)

        chosen = base.choose(budget, partial(common_threshold, analysis.thresholds))
        return base.plan(chosen, analysis.errors, exact_error)

    def fill(self, built: nn.Module, state: State, analysis: PCAAnalysis, plan: Plan) -> None:
        write_whole(built, state.network, plan)
        for name, layer, weight in factored_layers(state, plan):
            U_FJ = analysis.directions[name][:, : plan.factors[name].rank]
            m_F = analysis.responses[name].mean_response(layer, weight)
            bias = dict(layer.named_parameters()).get("bias")
            b_F = torch.zeros_like(m_F) if bias is None else precise(bias)
            W_FN = fold(precise(weight))[0]
            target = built.get_submodule(name)
            write_factors(target, U_FJ[None], (U_FJ.T @ W_FN)[None])
            write_parameter(target.get_submodule("decoder"), "bias", m_F + U_FJ @ (U_FJ.T @ (b_F - m_F)))


def next_scores(variances: Floats) -> Floats:
    """lambda_{j+1} / sum_{a<=j+1} lambda_a for j = 1 to F, falling to 0 at the full rank; 0 without any variance."""
    sums = np.cumsum(variances)
    scores = np.divide(variances, sums, out=np.zeros_like(variances), where=sums > 0)
    return np.append(scores[1:], 0.0)


def discarded(variances: Floats) -> Floats:
    """The share of the variance outside the first j directions, for j = 1 to F, falling to 0."""
    tail = np.append(np.cumsum(variances[::-1])[::-1][1:], 0.0)
    total: float = variances.sum() or 1.0
    return tail / total
