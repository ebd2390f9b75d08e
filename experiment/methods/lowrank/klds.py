"""KLDS: groups, folding and rank of every layer, chosen by their effect on the network's output.

Shape suffixes as in `experiment.methods.data.fisher`; J = rank.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.inputs import Inputs
from experiment.layers.build import write_whole
from experiment.layers.compressible import weight_of
from experiment.layers.factored_layers import balance, max_rank, write_factors
from experiment.layers.masks import stored, write_parameter
from experiment.layers.plan import Factors, Plan, State
from experiment.layers.refit import refit
from experiment.methods.allocate import RULES, front
from experiment.methods.base import Budget, Calibration
from experiment.methods.data.fisher import gather
from experiment.methods.data.output_divergence import as_fit, comparable_inputs, divergence, predictions_of
from experiment.methods.data.responses import precise
from experiment.methods.lowrank.base import LowRankLayers, lowrank_layers
from experiment.methods.lowrank.klds_factors import LayerDirections
from experiment.methods.lowrank.layer_options import LayerOptions, group_numbers, slicings
from experiment.methods.lowrank.settings import KLDSSettings, SelectorSettings
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.methods.starting_state import factored_layers, live_filters, parameter_name
from experiment.progress import progress

Floats = NDArray[np.float64]
MOMENTS = 2**25  # elements of the moments that are gathered in one pass, at least
LEAST = 1e-9  # a smaller divergence is rounding
LEAST_SHARE = 1e-12  # of a layer's largest prediction: a smaller one is rounding


@dataclass(frozen=True)
class KLDSAnalysis:
    """The estimated effect of every layer's options on the output.

    Attributes:
        network: the starting state as plain layers, masked weights at zero.
        directions: layer name -> its factors under any option.
        losses: for every layer (number of options,): the estimated divergence of the network's output.
        errors: for every layer (number of options,): the root of the predicted divergence over that of removing it all.
        inputs: the calibration data.
        seed: seeds the sampling in `refit`.
    """

    base: LowRankLayers
    network: nn.Module
    directions: Mapping[str, LayerDirections]
    losses: Sequence[Floats]
    errors: Sequence[Floats]
    inputs: Tensor
    seed: int


@dataclass(frozen=True)
class KLDS:
    """Layer-wise decomposition selector based on the Kullback-Leibler divergence of the network's output.

        min over (folding_l, k_l, j_l) of sum_l KL_l(folding_l, k_l, j_l)   subject to   sum_l size_l <= budget

    with KL_l the mean of KL(p || q) over calibration inputs, p the prediction of the dense network and q that of the
    network in which only layer l is decomposed. It is measured for a few options of every layer; for the others, the
    second-order prediction 1/2 tr(G E C E^T) (`experiment.methods.data.fisher`) is scaled to the measured values. The
    factors of a slice W_i minimise that prediction: with U the first eigenvectors of G^1/2 W_i C_i W_i^T G^1/2,
    W_i becomes (G^-1/2 U) (U^T G^1/2 W_i). Once the options are chosen, the decoders are fitted, layer after layer, to
    the outputs of the dense layers (`experiment.layers.refit`). Labels are not used.

    Other weights than those analysed (rewinding) are encoded along the same directions and keep the fitted decoders.

    With `allocation: minimax` the largest KL_l is the smallest possible: each layer takes the cheapest option that does
    less harm than a common level, as in AIMET's greedy selection (https://github.com/quic/aimet).

    Source: this project; the options are those of ALDS (Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442).
    """

    settings: KLDSSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> KLDSAnalysis:
        """The second-order prediction for all options, and the measured divergence of some.

        Raises: CompressionError: there are no calibration data, the outputs are not class scores or not finite, or the
            targets are those of a regression.
        """
        inputs = comparable_inputs(calibration, state, "KLDS")
        base, network = selectable_layers(state, self.settings)
        seed = int(torch.randint(2**62, (), generator=generator))
        directions = dict[str, LayerDirections]()
        for part in directions_of(base, network, inputs, generator):
            directions |= part
        predicted = [per_option(options, directions[name]) for name, options in base.options.items()]
        images = as_fit(network, inputs, self.settings.images)
        losses = _measure(network, base, directions, predicted, images, self.settings.points)
        errors = [np.sqrt(p / (directions[n].total or 1.0)) for n, p in zip(base.options, predicted, strict=True)]
        return KLDSAnalysis(base, network, directions, losses, errors, inputs, seed)

    def plan(self, analysis: KLDSAnalysis, budget: Budget) -> Plan:
        """The options with the smallest estimated sum of divergences within the budget."""
        base = analysis.base
        rule = self.settings.allocation
        chosen = base.choose(budget, partial(RULES[rule], analysis.losses))

        def exact_error(name: str, factors: Factors) -> float:
            filters, blocks = live_filters(analysis.network, {}, name), base.start.layers[name].groups
            left = precise(filters) - analysis.directions[name].product(factors)
            analysis.directions[name].forget()
            norm = LayerSpectra(filters, blocks).norm(factors.folding)
            return LayerSpectra(left, blocks).norm(factors.folding) / (norm or 1.0)

        losses = [float(own[i]) for own, i in zip(analysis.losses, chosen or (), strict=chosen is not None)]
        loss = max(losses, default=0.0) if rule == "minimax" else sum(losses)
        return replace(base.plan(chosen, analysis.errors, exact_error), loss=loss)

    def fill(self, built: nn.Module, state: State, analysis: KLDSAnalysis, plan: Plan) -> None:
        start = analysis.base.start
        write_whole(built, start.state.network, plan)
        own = {name: factors for name, factors in plan.factors.items() if name in analysis.directions}
        for name, factors in own.items():
            U_GRJ, V_GJN = analysis.directions[name].factors(factors)
            write_factors(built.get_submodule(name), U_GRJ, V_GJN, factors.folding)
            analysis.directions[name].forget()
        untied = [name for name in own if not start.layers[name].tied]
        if self.settings.refit and untied:
            refit(built, analysis.network, untied, analysis.inputs, analysis.seed)
        if state.network is not start.state.network:
            _rewind(built, state, analysis, plan)
        for name, factors in own.items():
            balance(built.get_submodule(name), factors.folding)


def _rewind(built: nn.Module, state: State, analysis: KLDSAnalysis, plan: Plan) -> None:
    decoders = {
        name: stored(built.get_submodule(name).get_submodule("decoder"), "weight").clone()
        for name in analysis.directions.keys() & plan.factors.keys()
    }
    write_whole(built, state.network, plan)
    for name, _, weight in factored_layers(state, plan):
        factors, layer = plan.factors[name], built.get_submodule(name)
        U_GRJ, V_GJN = analysis.directions[name].factors(factors, weight)
        write_factors(layer, U_GRJ, V_GJN, factors.folding)
        write_parameter(layer.get_submodule("decoder"), "weight", decoders[name])


def selectable_layers(state: State, settings: SelectorSettings) -> tuple[LowRankLayers, nn.Module]:
    """The layers with their options, and the network with masked weights at zero: the state's, if there are none."""
    base = lowrank_layers(
        state,
        lambda info: slicings(info, group_numbers(info, settings.min_group_width), settings.foldings),
        settings.round_to,
        chosen=settings,
    )
    if not base.start.masks:
        return base, base.start.network
    network = copy.deepcopy(base.start.network)
    for name, mask in base.start.masks.items():
        parameter = network.get_parameter(name).detach()
        parameter.mul_(mask.to(parameter.device))
    return base, network


def directions_of(
    base: LowRankLayers, network: nn.Module, inputs: Inputs, generator: torch.Generator
) -> Iterator[dict[str, LayerDirections]]:
    """The factors of all layers, in parts of which the moments fit into memory."""
    for part in _parts(base):
        moments = gather(network, {n: o.slicings() for n, o in part.items()}, inputs, generator)
        found = dict[str, LayerDirections]()
        for name, options in part.items():
            tops = {slicing: int(options.ranks[options.of(slicing)].max()) for slicing in options.slicings()}
            found[name] = LayerDirections(live_filters(network, {}, name), moments.pop(name), tops)
            found[name].forget()
        yield found


def _parts(base: LowRankLayers) -> Iterator[dict[str, LayerOptions]]:
    """The layers in parts, so that the moments of one take half of the network's memory, or 256 MiB."""
    most = max(MOMENTS, sum(p.numel() for p in base.start.network.parameters()) // 4)
    part, size = dict[str, LayerOptions](), 0
    for info, options in base.pairs():
        sides = [(k * info.groups, max_rank(info, k, folding)) for k, folding in options.slicings()]
        own = sum(number * side**2 for number, side in sides) + info.out_features**2 // info.groups
        if part and size + own > most:
            yield part
            part, size = {}, 0
        part[info.name] = options
        size += own
    yield part


def per_option(options: LayerOptions, directions: LayerDirections) -> Floats:
    """The predicted divergence of every option, 0 for the layer itself."""
    values = np.zeros(len(options.ranks))
    for slicing in options.slicings():
        here = options.of(slicing)
        values[here] = directions.tails[slicing][options.ranks[here] - 1]
    return values


def _measure(
    network: nn.Module,
    base: LowRankLayers,
    directions: Mapping[str, LayerDirections],
    predicted: Sequence[Floats],
    images: Inputs,
    points: int,
) -> list[Floats]:
    """For every layer (number of options,): the divergence, measured for some options, interpolated for the others."""
    dense, losses = predictions_of(network, images), []
    pairs = list(zip(base.options.items(), predicted, strict=True))
    for (name, options), prediction in progress(pairs, "output divergence, by layer"):
        layer = network.get_submodule(name)
        weight, tried = layer.get_parameter("weight"), spread(prediction, options.costs["parameters"], points)
        measured = []
        for i in tried:
            factors = Factors(int(options.ranks[i]), int(options.groups[i]), int(options.foldings[i]))
            other = weight_of(layer, directions[name].product(factors)).to(weight)
            predictions = predictions_of(network, images, {parameter_name(name): other})
            measured.append(divergence(name, dense, predictions))
        directions[name].forget()
        losses.append(interpolated(prediction, prediction[tried], np.array(measured)))
    return losses


def spread(prediction: Floats, cost: NDArray[np.int64], points: int) -> list[int]:
    """Options on the Pareto front of prediction and cost, spread evenly in log cost, without the layer itself."""
    best = front(prediction, cost)
    best = best[best != len(cost) - 1]
    if not len(best):
        return []
    logarithms = np.log(cost[best])
    wanted = np.linspace(logarithms[0], logarithms[-1], points)
    return sorted({int(best[np.abs(logarithms - value).argmin()]) for value in wanted})


def interpolated(prediction: Floats, at: Floats, measured: Floats) -> Floats:
    """All predictions, scaled by measured / predicted, which is interpolated linearly in log-log."""
    losses = np.zeros(len(prediction))
    if len(at):
        least = LEAST_SHARE * prediction.max() or 1.0
        here, (at, first) = np.maximum(prediction[:-1], least), np.unique(np.maximum(at, least), return_index=True)
        ratio = np.interp(np.log(here), np.log(at), np.log(np.maximum(measured, LEAST)[first] / at))
        losses[:-1] = here * np.exp(ratio)
    return losses
