"""Tucker: a convolution as a smaller one between two 1x1 convolutions, with ranks for its outputs and its inputs.

Shape suffixes as in `experiment.methods.lowrank.hooi`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.layers.compressible import LayerInfo
from experiment.layers.masks import stored, write_parameter
from experiment.layers.plan import Detail, Factors, Plan, State
from experiment.methods.allocate import RULES, front, smallest
from experiment.methods.base import Budget, Calibration, Quantity
from experiment.methods.budget_search import check_smallest
from experiment.methods.data.responses import precise
from experiment.methods.lowrank.base import LowRankLayers, detail, lowrank_layers
from experiment.methods.lowrank.hooi import Parts, hooi, hosvd_errors
from experiment.methods.lowrank.layer_options import Integers, LayerOptions, slicings
from experiment.methods.lowrank.settings import TuckerSettings
from experiment.methods.lowrank.spectra import LayerSpectra, energy_errors
from experiment.methods.starting_state import Start, factored_layers, live_filters, parameter_name
from experiment.progress import progress

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TuckerOptions:
    """Pairs of ranks that make a convolution smaller and do not add multiply-adds; last, the layer itself.

    Options that are no better than others, in error and in either cost, are left out.

    Attributes:
        outputs, inputs: R and Q, (number of options,) each.
        errors: the share of the weight's squared norm that is lost with the bases of the HOSVD.
        costs: parameters (bias included) and multiply-adds.
    """

    info: LayerInfo
    outputs: Integers
    inputs: Integers
    errors: Floats
    costs: Mapping[Quantity, Integers]

    def factors(self, index: int) -> dict[str, Factors]:
        """The factors of the layer and of its encoder by name; none for the layer itself.

        A side with its full rank (R = F or Q = C) has no 1x1 convolution.
        """
        info, outputs, inputs = self.info, int(self.outputs[index]), int(self.inputs[index])
        kernel = 2 ** len(info.kernel) - 1  # the folding by which the decoder owns it
        if outputs == info.out_features:
            return {} if inputs == info.in_features else {info.name: Factors(inputs, 1, kernel, info.bias)}
        own = {info.name: Factors(outputs, bias=info.bias)}
        return own if inputs == info.in_features else {**own, _encoder(info.name): Factors(inputs, 1, kernel)}

    def ranks(self, factors: Mapping[str, Factors]) -> tuple[int, int]:
        """R and Q of the layer's factors in a plan."""
        own, encoder = factors[self.info.name], factors.get(_encoder(self.info.name))
        if own.folding:
            return self.info.out_features, own.rank
        return own.rank, encoder.rank if encoder else self.info.in_features


@dataclass(frozen=True)
class TuckerAnalysis:
    """The layers with their options.

    Attributes:
        base: layers that get a plain SVD.
        convolutions: the other ones by name.
        errors: those of all options, first of the layers of `base`.
        found: layer name -> the ranks that were asked for last, with their parts; a cache.
    """

    base: LowRankLayers
    convolutions: Mapping[str, TuckerOptions]
    errors: Sequence[Floats]
    found: dict[str, tuple[tuple[int, int], Parts]] = field(default_factory=dict, compare=False)

    def filters(self, name: str) -> Tensor:
        """A convolution's analysed weight."""
        return live_filters(self.base.start.network, self.base.start.masks, name)

    def parts(self, name: str, ranks: tuple[int, int]) -> Parts:
        """Those of its approximation."""
        if name not in self.found or self.found[name][0] != ranks:
            self.found[name] = ranks, hooi(precise(self.filters(name)).flatten(2), *ranks)
        return self.found[name][1]

    def detail(self, name: str, factors: Mapping[str, Factors]) -> dict[str, Detail]:
        """What the plan reports of a layer."""
        encoder = factors.get(_encoder(name))
        share = exact = 0.0
        if factors:
            W_FCK = precise(self.filters(name)).flatten(2)
            U_FR, G_RQK, V_CQ = self.parts(name, self.convolutions[name].ranks(factors))
            left_FCK = W_FCK - torch.einsum("fr,rqk,cq->fck", U_FR, G_RQK, V_CQ)
            share = float(left_FCK.square().sum() / W_FCK.square().sum().clamp_min(1e-300))
            exact = LayerSpectra(left_FCK).norm() / (self.base.spectra[name].norm() or 1.0)
        return {**detail(factors.get(name), share, exact), "input_rank": encoder.rank if encoder else None}


@dataclass(frozen=True)
class Tucker:
    """A convolution becomes a 1x1 one to Q channels, one with its kernel from Q to R, and a 1x1 one to its outputs.

    W (F, C, K) = G x_1 U x_2 V approximately, with U (F, R) and V (C, Q) orthonormal and the core G = W x_1 U^T x_2
    V^T; what is lost is ||W||^2 - ||G||^2. The ranks of all layers are chosen together, by the errors of the HOSVD:
    there U and V are the leading singular vectors of W unfolded by its outputs and by its inputs, and cumulative sums
    of the squares of one core give the errors of all pairs of ranks. Then HOOI improves U and V in turns, each the best
    for the other one.

    A side with its full rank has no 1x1 convolution (Tucker-1). Layers whose kernel has one element, and grouped and
    transposed ones, get a truncated SVD. `relative_error` is the share of the squared norm that is lost, `input_rank`
    is Q where both sides have a 1x1 convolution.

    Source: Kim et al. 2016, https://arxiv.org/abs/1511.06530; De Lathauwer et al. 2000, "On the best rank-1 and
    rank-(R1, R2, ..., RN) approximation of higher-order tensors" (HOOI)
    Differs: ranks follow from the budget (setting `allocation`), not from variational Bayesian matrix factorisation.
    """

    settings: TuckerSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> TuckerAnalysis:
        """The errors of all pairs of ranks."""
        settings, step = self.settings, self.settings.round_to
        every = lowrank_layers(
            state, lambda info: [] if _has_both(info) else slicings(info, (1,)), step, chosen=settings
        )
        infos = {name: every.start.layers[name] for name in every.options}
        base = replace(every, options={n: own for n, own in every.options.items() if not _has_both(infos[n])})
        found = {
            name: find_options(base.start, info, step)
            for name, info in progress(infos.items(), "errors, by layer")
            if _has_both(info)
        }
        return TuckerAnalysis(base, found, [*base.curves(energy_errors), *(own.errors for own in found.values())])

    def plan(self, analysis: TuckerAnalysis, budget: Budget) -> Plan:
        """The ranks that the rule of `allocation` finds for the budget."""
        base, start, number = analysis.base, analysis.base.start, len(analysis.base.options)
        chosen = self._choose(analysis, budget)
        plan = base.plan(None if chosen is None else chosen[:number], analysis.errors[:number])
        factors, parameters, loss = dict(plan.factors), plan.parameters or 0, plan.loss
        details = {name: {**own, "input_rank": None} for name, own in plan.details.items()}
        for i, (name, options) in enumerate(analysis.convolutions.items(), number):
            index = -1 if chosen is None else chosen[i]
            own = options.factors(index)
            factors |= own
            details[name] = analysis.detail(name, own)
            parameters += int(options.costs["parameters"][index]) - start.layer_cost(name, "parameters")
            loss = max(loss, float(options.errors[index]))
        masks = {n: mask for n, mask in plan.masks.items() if n.rpartition(".")[0] not in factors}
        return replace(plan, factors=factors, masks=masks, parameters=parameters, details=details, loss=loss)

    def fill(self, built: nn.Module, state: State, analysis: TuckerAnalysis, plan: Plan) -> None:
        analysis.base.fill(built, state, plan)
        analysed = state.network is analysis.base.start.state.network
        for name, _, filters in factored_layers(state, plan):
            if (options := analysis.convolutions.get(name)) is not None:
                ranks = options.ranks(plan.factors)
                parts = analysis.parts(name, ranks) if analysed else hooi(precise(filters).flatten(2), *ranks)
                _write(built.get_submodule(name), *parts)

    def _choose(self, analysis: TuckerAnalysis, budget: Budget) -> list[int] | None:
        """The index of every layer's option; None if the unchanged state fits the budget. Prices are not looked at."""
        start = analysis.base.start
        options: dict[str, LayerOptions | TuckerOptions] = {**analysis.base.options, **analysis.convolutions}
        if start.allows(budget):
            return None
        costs = [own.costs[budget.quantity] for own in options.values()]
        fixed = start.cost(budget.quantity) - sum(start.layer_cost(name, budget.quantity) for name in options)
        check_smallest(fixed + smallest(costs), budget)
        return RULES[self.settings.allocation](analysis.errors, costs, budget.limit - fixed)


def find_options(start: Start, info: LayerInfo, round_to: int = 1) -> TuckerOptions:
    """The options of a convolution; ranks are multiples of `round_to`, or full."""
    W_FCK = precise(live_filters(start.network, start.masks, info.name)).flatten(2)
    (F, C, K), bias = W_FCK.shape, info.out_features * info.bias
    errors_FC = hosvd_errors(W_FCK)
    R_R1 = np.array([*range(round_to, min(F - 1, C * K) + 1, round_to), F])[:, None]
    Q_Q = np.array([*range(round_to, min(C - 1, F * K) + 1, round_to), C])
    outer_R1, inner_Q, core_RQ = np.where(R_R1 < F, R_R1 * F, 0), np.where(Q_Q < C, Q_Q * C, 0), R_R1 * Q_Q * K
    before = sum(math.prod(grid) for grid in info.input_grids)
    sizes, works = outer_R1 + inner_Q + core_RQ + bias, (outer_R1 + core_RQ) * info.positions + inner_Q * before
    dense, work = start.layer_cost(info.name, "parameters"), start.layer_cost(info.name, "flops")
    smaller = np.flatnonzero((sizes < dense) & (works <= work))
    arrays = [
        np.broadcast_to(own, sizes.shape).flatten()[smaller]
        for own in (R_R1, Q_Q, errors_FC[R_R1 - 1, Q_Q - 1], sizes, works)
    ]
    best = np.unique(np.concatenate([front(arrays[2], cost) for cost in arrays[3:]])) if len(smaller) else smaller
    R, Q, error, size, flops = (
        np.append(own[best], whole) for own, whole in zip(arrays, (F, C, 0, dense, work), strict=True)
    )
    return TuckerOptions(info, R, Q, error, {"parameters": size, "flops": flops})


def _write(layer: nn.Module, U_FR: Tensor, G_RQK: Tensor, V_CQ: Tensor) -> None:
    """Write the parts into a layer's factors, in place, with the norms of the core's slices shared between them."""
    has_outer, has_inner = U_FR.shape[0] > U_FR.shape[1], V_CQ.shape[0] > V_CQ.shape[1]
    share = 1 / (1 + has_outer + has_inner)
    a_R, b_Q = (norms.where(norms > 0, 1).pow(share) for norms in (G_RQK.norm(dim=(1, 2)), G_RQK.norm(dim=(0, 2))))
    if has_outer:
        _put(layer.get_submodule("decoder"), U_FR * a_R)
        G_RQK, layer = G_RQK / a_R[:, None, None], layer.get_submodule("encoder")
    if has_inner:
        _put(layer.get_submodule("encoder"), (V_CQ * b_Q).T)
        G_RQK, layer = G_RQK / b_Q[:, None], layer.get_submodule("decoder")
    _put(layer, G_RQK)


def _put(layer: nn.Module, weight: Tensor) -> None:
    write_parameter(layer, "weight", weight.reshape(stored(layer, "weight").shape))


def _encoder(layer: str) -> str:
    return parameter_name(layer, "encoder")


def _has_both(info: LayerInfo) -> bool:
    """Whether a layer gets ranks of outputs and inputs."""
    return info.kind == "conv" and info.groups == 1 and not info.transposed and math.prod(info.kernel) > 1
