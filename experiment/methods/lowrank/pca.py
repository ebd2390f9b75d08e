"""PCA: every layer's responses projected onto the directions in which they vary most.

Shape suffixes: F = filters (output features), N = columns of the folded weight, J = rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import write_whole
from experiment.layers.factored_layers import flops, fold, write_factors
from experiment.layers.masks import write_parameter
from experiment.layers.plan import Factors, Plan, State
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration
from experiment.methods.data.responses import Responses, gather, precise
from experiment.methods.lowrank import layer_options
from experiment.methods.lowrank.layer_options import LowRank
from experiment.methods.lowrank.settings import PCASettings
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.methods.starting_state import factored_layers, live_weight

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Analysis:
    """What a network's responses to the calibration data say.

    Attributes:
        responses: layer name -> the moments of its responses.
        directions: layer name -> U (F, F), eigenvectors of the responses' covariance, the largest variance first.
        thresholds, errors: for every layer one value an option, 0 for the last one, the layer as it is.
    """

    base: LowRank
    responses: Mapping[str, Responses]
    directions: Mapping[str, Tensor]
    thresholds: Sequence[Floats]
    errors: Sequence[Floats]


@dataclass(frozen=True)
class PCA:
    """y = W x + b becomes y = U U^T W x + b', with U the first J eigenvectors of the responses' covariance.

    With m the mean response, b' = m + U U^T (b - m): what U does not span stays at its mean. The mean squared error of
    the responses is then the sum of the eigenvalues left out, which no other U of that rank undercuts;
    `relative_error` is its share of the sum of all. A layer without a bias gains one, which counts.

    The objective is the product over layers of the eigenvalues kept. Direction j adds lambda_j / sum_{a<=j} lambda_a to
    its relative value; divided by the multiply-adds of one rank, that is a score, and directions of a score above t
    stay, at least one a layer. t is the same in all layers and as low as the budget allows. Scores never rise with j,
    for their numerator does not and their denominator does not fall.

    Other weights than those analysed (rewinding) are projected onto the same U, and m is what they would answer to the
    analysed network's mean inputs.

    Source: Zhang et al. 2015, https://arxiv.org/abs/1505.06798
    Differs: the linear variant alone: no nonlinearity in the objective, no correction for the layers before.
    """

    settings: PCASettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Analysis:
        """The principal directions of all layers' responses, in one pass over the calibration data.

        Raises: CompressionError: there are no calibration data, or responses are NaN or infinite.
        """
        if calibration is None or len(calibration.inputs) == 0:
            raise CompressionError(
                "PCA needs calibration data, inputs that the network is meant for, and got none. Give some: "
                "compress(..., data=inputs), a tensor, a pair (inputs, targets) or a loader of such pairs."
            )
        base = layer_options.analyse(
            state, lambda info: [(1, 0)], self.settings.round_to, layers=self.settings.layers, with_bias=True
        )
        responses = gather(base.start.network, base.options, calibration.inputs)
        directions, thresholds, errors = {}, [], []
        for (name, options), (info, _) in zip(base.options.items(), base.pairs(), strict=True):
            values, vectors = torch.linalg.eigh(responses[name].covariance)
            directions[name] = vectors.flip(-1)
            variances = values.flip(-1).cpu().numpy()
            variances = np.where(variances > responses[name].rounding, variances, 0.0)
            ranks = options.ranks[:-1]
            thresholds.append(np.append(next_scores(variances)[ranks - 1] / flops(info, 1), 0.0))
            errors.append(np.append(discarded(variances)[ranks - 1], 0.0))
        return Analysis(base, responses, directions, thresholds, errors)

    def plan(self, analysis: Analysis, budget: Budget) -> Plan:
        """The lowest t that the budget allows.

        Raises: InfeasibleBudget: the smallest rank everywhere is still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return layer_options.unchanged(base)
        chosen = common_threshold(analysis.thresholds, base.costs(budget.quantity), base.limit(budget))

        def exact_error(name: str, factors: Factors) -> float:
            weight = precise(live_weight(base.start.network, base.start.masks, name))
            left_out = analysis.directions[name][:, factors.rank :].T @ fold(weight)[0]
            return LayerSpectra(left_out).norm() / (LayerSpectra(weight).norm() or 1.0)

        return layer_options.make_plan(base, chosen, analysis.errors, exact_error)

    def fill(self, built: nn.Module, state: State, analysis: Analysis, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
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
    """lambda_{j+1} / sum_{a<=j+1} lambda_a for j = 1 to F, falling to 0 at the full rank; 0 where nothing varies."""
    sums = np.cumsum(variances)
    scores = np.divide(variances, sums, out=np.zeros_like(variances), where=sums > 0)
    return np.append(scores[1:], 0.0)


def discarded(variances: Floats) -> Floats:
    """The share of the variance that j directions leave out, for j = 1 to F, falling to 0."""
    tail = np.append(np.cumsum(variances[::-1])[::-1][1:], 0.0)
    total: float = variances.sum() or 1.0
    return tail / total
