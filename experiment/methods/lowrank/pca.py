"""PCA: every layer's responses, projected onto the directions of largest variance.

Shape suffixes: O = groups of the layer itself, F = filters (output features), H = F / O, N = columns of the folded
weight, J = rank.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.inputs import Inputs
from experiment.layers.block_passes import BlockPasses
from experiment.layers.build import write_whole
from experiment.layers.compressible import LayerInfo
from experiment.layers.factored_layers import flops, fold, write_factors
from experiment.layers.fit_masked import live_copy
from experiment.layers.masks import write_parameter
from experiment.layers.plan import Factors, Plan, State
from experiment.layers.refit import refit
from experiment.methods.allocate import RULES, common_threshold
from experiment.methods.base import Budget, Calibration, calibration_inputs
from experiment.methods.data.responses import MANY_FEATURES, SAMPLES, Responses, gather, precise, span_of
from experiment.methods.lowrank.base import LowRankLayers, lowrank_layers
from experiment.methods.lowrank.layer_options import LayerOptions
from experiment.methods.lowrank.settings import PCASettings
from experiment.methods.lowrank.spectra import COLUMNS, LayerSpectra
from experiment.methods.starting_state import factored_layers, live_filters

Floats = NDArray[np.float64]
COVARIANCES = 2**23  # elements in float64 at a time, at least
SHARE, SHARE_OF_A_BLOCK = 8, 32  # of the network's elements at a time: with a pass each, or with one pass for all
Part = dict[str, tuple[LayerInfo, LayerOptions]]


@dataclass(frozen=True)
class PCAAnalysis:
    """The layers' responses to the calibration data.

    Attributes:
        responses: layer name -> the moments of its responses, without the covariance.
        inputs: the calibration data.
        directions: layer name -> U (O, H, J), eigenvectors of the responses' covariance in every group of filters, the
            largest variance first, as many as the largest rank of an option.
        thresholds, errors: one value per option of every layer, 0 for the last option, the unchanged layer.
    """

    base: LowRankLayers
    inputs: Inputs
    responses: Mapping[str, Responses]
    directions: Mapping[str, Tensor]
    thresholds: Sequence[Floats]
    errors: Sequence[Floats]

    def first(self, layer: str, rank: int) -> Tensor:
        """A layer's first directions: (O, H, rank), in float64."""
        return self.directions[layer][:, :, :rank].double()


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

    Filters of a grouped layer have directions of their own in every group, J each. An embedding with tied layers keeps
    its responses' second moments instead of their covariance, and gains no bias: an output layer reads the same weight.

    Other weights than those analysed (rewinding) are projected onto the same U, and m is their response to the analysed
    network's mean inputs.

    Source: Zhang et al. 2015, https://arxiv.org/abs/1505.06798. Without means, the projection is that of the SVD of W S
    with S S^T = X X^T: Wang et al. 2025, SVD-LLM, https://arxiv.org/abs/2403.07378, and BALF, https://arxiv.org/abs/2509.25136
    Differs: the linear variant only, without the nonlinearity and without correcting for errors of earlier layers
    unless `refit` does; SVD-LLM and BALF have no bias of the mean.
    """

    settings: PCASettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> PCAAnalysis:
        """The principal directions of all layers' responses, in one pass over the calibration data.

        Raises: CompressionError: there are no calibration data, or responses are NaN or infinite.
        """
        inputs = calibration_inputs(calibration, state, "PCA, also as BALF or SVD-LLM,")
        base = lowrank_layers(
            state, lambda info: [(1, 0)], self.settings.round_to, chosen=self.settings, with_bias=True
        )
        responses, directions, thresholds, errors = dict[str, Responses](), dict[str, Tensor](), [], []
        network, parts, passes = base.start.network, _parts(base, SHARE), inputs
        if len(parts) > 1 and (blocks := BlockPasses(network, inputs, SAMPLES)).resume:
            passes, parts = blocks, _parts(base, SHARE_OF_A_BLOCK)
        for part, later in zip(parts, [*parts[1:], {}], strict=True):
            spans = ((name, span_of(live_filters(network, {}, name), info.groups)) for name, (info, _) in part.items())
            axes = {name: axes_FN for name, axes_FN in spans if axes_FN is not None}
            found = gather(network, part, passes, axes, later)
            for info, options in part.values():
                own, ranks = found.pop(info.name), options.ranks[:-1]
                values_OH, vectors_OHH = torch.linalg.eigh(_covariance(own, info))
                vectors_OHJ = vectors_OHH.flip(-1)[:, :, : options.ranks.max()]
                axes_HN = axes.pop(info.name, None)
                directions[info.name] = vectors_OHJ.clone() if axes_HN is None else (axes_HN @ vectors_OHJ).float()
                variances = values_OH.flip(-1).cpu().numpy()
                variances = np.where(variances > own.rounding, variances, 0.0).sum(0)
                thresholds.append(np.append(next_scores(variances)[ranks - 1] / flops(info, 1), 0.0))
                errors.append(np.append(discarded(variances)[ranks - 1], 0.0))
                responses[info.name] = replace(own, covariance=torch.zeros(0))
        return PCAAnalysis(base, inputs, responses, directions, thresholds, errors)

    def plan(self, analysis: PCAAnalysis, budget: Budget) -> Plan:
        """The ranks under the lowest t that the budget allows."""
        base = analysis.base

        def exact_error(name: str, factors: Factors) -> float:
            filters = live_filters(base.start.network, base.start.masks, name)
            U_OHJ, blocks = analysis.first(name, factors.rank), base.start.layers[name].groups
            W_OHN = fold(filters, blocks=blocks)
            left_OHN = torch.empty_like(W_OHN, dtype=torch.float64, device=U_OHJ.device)
            size = max(1, COLUMNS // len(filters))
            for W_OHn, left_OHn in zip(torch.split(W_OHN, size, 2), torch.split(left_OHN, size, 2), strict=True):
                w_OHn = precise(W_OHn)
                torch.sub(w_OHn, U_OHJ @ (U_OHJ.mT @ w_OHn), out=left_OHn)
            left_FN = left_OHN.flatten(0, 1)
            return LayerSpectra(left_FN, blocks).norm() / (LayerSpectra(filters, blocks).norm() or 1.0)

        if (rule := RULES.get(self.settings.allocation)) is None:
            chosen = base.choose(budget, partial(common_threshold, analysis.thresholds))
        else:
            chosen = base.choose(budget, partial(rule, analysis.errors))
        return base.plan(chosen, analysis.errors, exact_error)

    def fill(self, built: nn.Module, state: State, analysis: PCAAnalysis, plan: Plan) -> None:
        write_whole(built, state.network, plan)
        for name, layer, filters in factored_layers(state, plan):
            U_OHJ, target = analysis.first(name, plan.factors[name].rank), built.get_submodule(name)
            write_factors(target, U_OHJ, U_OHJ.mT @ fold(precise(filters), blocks=len(U_OHJ)))
            if not plan.factors[name].bias:
                continue
            m_F = analysis.responses[name].mean_response(layer, filters)
            bias = dict(layer.named_parameters()).get("bias")
            left_OH1 = ((torch.zeros_like(m_F) if bias is None else precise(bias)) - m_F).reshape(len(U_OHJ), -1, 1)
            b_F = m_F + (U_OHJ @ (U_OHJ.mT @ left_OH1)).flatten()
            write_parameter(target.get_submodule("decoder"), "bias", b_F)
        start = analysis.base.start
        names = [name for name in analysis.directions if name in plan.factors and not start.layers[name].tied]
        if self.settings.refit and names:
            refit(built, live_copy(state, plan), names, analysis.inputs, seed=0)


def _parts(base: LowRankLayers, share: int) -> list[Part]:
    """The layers in parts, so that the covariances of one have a share of the network's elements, or take 64 MiB."""
    most = max(COVARIANCES, sum(p.numel() for p in base.start.network.parameters()) // share)
    parts, size = list[Part](), most
    for info, options in base.pairs():
        size += _size(info) ** 2
        if size > most:
            parts.append({})
            size = _size(info) ** 2
        parts[-1][info.name] = info, options
    return parts


def _size(info: LayerInfo) -> int:
    """Rows of the covariance, at most; see `span_of`."""
    few = info.groups == 1 and info.out_features > MANY_FEATURES
    return min(info.out_features, info.in_features * math.prod(info.kernel)) if few else info.out_features


def _covariance(responses: Responses, info: LayerInfo) -> Tensor:
    """That of every group of filters: (O, H, H); around zero for layers whose factors gain no bias."""
    covariance, features = responses.covariance, len(responses.covariance) // info.groups
    if info.tied:
        covariance = covariance + torch.outer(responses.mean, responses.mean)
    blocks = covariance.reshape(info.groups, features, info.groups, features).diagonal(dim1=0, dim2=2)
    return blocks.movedim(-1, 0)


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
