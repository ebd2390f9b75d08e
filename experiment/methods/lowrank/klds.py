"""KLDS: groups, folding and rank of every layer, chosen by how far the network's output moves away.

Shape suffixes as in `experiment.methods.data.fisher`; J = rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import write_whole
from experiment.layers.factored_layers import balance, write_factors
from experiment.layers.forward_pass import evaluating
from experiment.layers.masks import stored, write_parameter
from experiment.layers.plan import Factors, Plan, State
from experiment.layers.refit import refit
from experiment.methods.allocate import front, minimise_sum
from experiment.methods.base import Budget, Calibration
from experiment.methods.data.fisher import SAMPLES, gather, log_probabilities
from experiment.methods.data.responses import precise
from experiment.methods.lowrank import layer_options
from experiment.methods.lowrank.klds_factors import LayerDirections
from experiment.methods.lowrank.layer_options import LowRank, Options, group_numbers, slicings
from experiment.methods.lowrank.settings import KLDSSettings
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.methods.starting_state import factored_layers
from experiment.progress import progress

Floats = NDArray[np.float64]
LEAST = 1e-9  # a divergence below this is rounding
LEAST_SHARE = 1e-12  # of a layer's largest prediction: one below this is


@dataclass(frozen=True)
class Analysis:
    """What is known of every layer's options.

    Attributes:
        network: the starting state as plain layers, masked weights at zero.
        directions: layer name -> its factors under any option.
        losses: for every layer (number of options,): the estimated divergence of the network's output.
        errors: for every layer (number of options,): the root of the share of the predicted divergence that is lost.
        inputs: the calibration data.
        seed: of what `refit` draws.
    """

    base: LowRank
    network: nn.Module
    directions: Mapping[str, LayerDirections]
    losses: Sequence[Floats]
    errors: Sequence[Floats]
    inputs: Tensor
    seed: int


@dataclass(frozen=True)
class KLDS:
    """Layer-wise decomposition selected by the Kullback-Leibler divergence of the network's output.

        min over (scheme_l, k_l, j_l) of sum_l KL_l(scheme_l, k_l, j_l)   subject to   sum_l size_l <= budget

    with KL_l the mean of KL(p || q) on calibration images, p the dense network's prediction and q that of the network
    in which layer l alone is decomposed. It is measured at a few options of every layer; between them the second-order
    prediction 1/2 tr(G E C E^T) (`experiment.methods.data.fisher`) is scaled to what was measured. The factors of a
    slice W_i are those that minimise that prediction: with U the first eigenvectors of G^1/2 W_i C_i W_i^T G^1/2,
    W_i becomes (G^-1/2 U) (U^T G^1/2 W_i). With the options chosen, the decoders are fitted in the order of the
    network to what the dense layers compute (`experiment.layers.refit`). Labels are not used.

    Other weights than those analysed (rewinding) are encoded along the same directions and keep the fitted decoders.

    Source: ours; the options are those of ALDS (Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442).
    """

    settings: KLDSSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Analysis:
        """Second-order prediction for all options, and measured divergence of some.

        Raises: CompressionError: there are no calibration data, or the outputs are no class scores, or not finite, or
            the targets are those of a regression.
        """
        if calibration is None or len(calibration.inputs) == 0:
            raise CompressionError(
                "KLDS needs calibration data, inputs that the network is meant for, and got none. Give some: "
                "compress(..., data=inputs), a tensor, a pair (inputs, targets) or a loader of such pairs."
            )
        targets = calibration.targets
        if targets is not None and targets.is_floating_point() and targets.dim() == 1:
            raise CompressionError(
                "KLDS takes the network's outputs for class scores, and compares their softmax. The targets are real "
                "numbers, as of a regression: take a method that looks at layers, such as PCA or ALDS."
            )
        base = layer_options.analyse(
            state,
            lambda info: slicings(info, group_numbers(info, self.settings.min_group_width), self.settings.foldings),
            self.settings.round_to,
            layers=self.settings.layers,
        )
        network, inputs = _plain(base), calibration.inputs.to(state.example)
        seed = int(torch.randint(2**62, (), generator=generator))
        moments = gather(network, {n: o.slicings() for n, o in base.options.items()}, inputs, generator)
        directions = {
            name: LayerDirections(network.get_submodule(name).get_parameter("weight"), moments.pop(name))
            for name in base.options
        }
        predicted = [_per_option(options, directions[name]) for name, options in base.options.items()]
        losses = _measure(network, base, directions, predicted, inputs[: self.settings.images], self.settings.points)
        errors = [np.sqrt(p / (directions[n].total or 1.0)) for n, p in zip(base.options, predicted, strict=True)]
        return Analysis(base, network, directions, losses, errors, inputs, seed)

    def plan(self, analysis: Analysis, budget: Budget) -> Plan:
        """The options of the smallest estimated sum of divergences within the budget.

        Raises: InfeasibleBudget: the smallest options are still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return layer_options.unchanged(base)
        chosen = minimise_sum(analysis.losses, base.costs(budget.quantity), base.limit(budget))

        def exact_error(name: str, factors: Factors) -> float:
            weight = analysis.network.get_submodule(name).get_parameter("weight")
            left = precise(weight) - analysis.directions[name].product(factors)
            return LayerSpectra(left).norm(factors.folding) / (LayerSpectra(weight).norm(factors.folding) or 1.0)

        return layer_options.make_plan(base, chosen, analysis.errors, exact_error)

    def fill(self, built: nn.Module, state: State, analysis: Analysis, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        start = analysis.base.start
        write_whole(built, start.state.network, plan)
        for name, factors in plan.factors.items():
            U_GRJ, V_GJN = analysis.directions[name].factors(factors)
            write_factors(built.get_submodule(name), U_GRJ, V_GJN, factors.folding)
        if self.settings.refit and plan.factors:
            refit(built, analysis.network, list(plan.factors), analysis.inputs, analysis.seed)
        if state.network is not start.state.network:
            _rewind(built, state, analysis, plan)
        for name, factors in plan.factors.items():
            balance(built.get_submodule(name), factors.folding)


def _rewind(built: nn.Module, state: State, analysis: Analysis, plan: Plan) -> None:
    decoders = {n: stored(built.get_submodule(n).get_submodule("decoder"), "weight").clone() for n in plan.factors}
    write_whole(built, state.network, plan)
    for name, _, weight in factored_layers(state, plan):
        factors, layer = plan.factors[name], built.get_submodule(name)
        U_GRJ, V_GJN = analysis.directions[name].factors(factors, weight)
        write_factors(layer, U_GRJ, V_GJN, factors.folding)
        write_parameter(layer.get_submodule("decoder"), "weight", decoders[name])


def _plain(base: LowRank) -> nn.Module:
    network = copy.deepcopy(base.start.network)
    for name, mask in base.start.masks.items():
        parameter = network.get_parameter(name).detach()
        parameter.mul_(mask.to(parameter.device))
    return network.eval()


def _per_option(options: Options, directions: LayerDirections) -> Floats:
    """The predicted divergence of every option, 0 for the layer itself."""
    values = np.zeros(len(options.ranks))
    for slicing in options.slicings():
        here = options.of(slicing)
        values[here] = directions.tails[slicing][options.ranks[here] - 1]
    return values


def _measure(
    network: nn.Module,
    base: LowRank,
    directions: Mapping[str, LayerDirections],
    predicted: Sequence[Floats],
    images: Tensor,
    points: int,
) -> list[Floats]:
    """For every layer (number of options,): the divergence, measured at some options and interpolated at the others."""
    dense, losses = _predictions(network, images), []
    pairs = list(zip(base.options.items(), predicted, strict=True))
    for (name, options), prediction in progress(pairs, "output divergence, by layer"):
        weight = network.get_submodule(name).get_parameter("weight").detach()
        before, tried = weight.clone(), _spread(prediction, options.costs["parameters"], points)
        measured = []
        for i in tried:
            factors = Factors(int(options.ranks[i]), int(options.groups[i]), int(options.foldings[i]))
            weight.copy_(directions[name].product(factors))
            measured.append(_divergence(name, dense, _predictions(network, images)))
        weight.copy_(before)
        losses.append(_interpolated(prediction, prediction[tried], np.array(measured)))
    return losses


def _predictions(network: nn.Module, images: Tensor) -> Tensor:
    with evaluating(network):
        return torch.cat([log_probabilities(network(batch)) for batch in torch.split(images, SAMPLES)])


def _spread(prediction: Floats, cost: NDArray[np.int64], points: int) -> list[int]:
    """Options on the front of prediction and cost, evenly spread over the cost's logarithm; not the layer itself."""
    best = front(prediction, cost)
    best = best[best != len(cost) - 1]
    if not len(best):
        return []
    logarithms = np.log(cost[best])
    wanted = np.linspace(logarithms[0], logarithms[-1], points)
    return sorted({int(best[np.abs(logarithms - value).argmin()]) for value in wanted})


def _interpolated(prediction: Floats, at: Floats, measured: Floats) -> Floats:
    """All predictions, each times measured / predicted, interpolated between the logarithms of neighbours."""
    losses = np.zeros(len(prediction))
    if len(at):
        least = LEAST_SHARE * prediction.max() or 1.0
        here, (at, first) = np.maximum(prediction[:-1], least), np.unique(np.maximum(at, least), return_index=True)
        ratio = np.interp(np.log(here), np.log(at), np.log(np.maximum(measured, LEAST)[first] / at))
        losses[:-1] = here * np.exp(ratio)
    return losses


def _divergence(name: str, dense: Tensor, compressed: Tensor) -> float:
    value = float((dense.exp() * (dense - compressed)).sum(1).mean())
    if not np.isfinite(value):
        raise CompressionError(
            f"layer '{name}': once it is decomposed, the network's outputs on the calibration data are NaN or "
            f"infinite. Are the data transformed like the training data? Otherwise choose a method that does not "
            f"compare outputs, such as ALDS."
        )
    return value
