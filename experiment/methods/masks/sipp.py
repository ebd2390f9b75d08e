"""SiPP: the weights of largest relative sensitivity in the network, or weights drawn in proportion to it.

Shape suffixes: W = weights of all layers that have a sensitivity, R = rows: the weights of one sign of one filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from experiment.layers.build import write_whole
from experiment.layers.compressible import filters_of, weight_of
from experiment.layers.plan import Plan, State
from experiment.methods.base import Budget, Calibration, calibration_inputs
from experiment.methods.data.poisson_draws import factors, first_rings
from experiment.methods.data.sensitivity import Reduction, union_bound, weight_sensitivities
from experiment.methods.masks import weight_ranking
from experiment.methods.masks.settings import SampledSiPPSettings, SiPPSettings
from experiment.methods.masks.sipp_rows import Rows, multiplier, num_samples, rows_of
from experiment.methods.starting_state import Start, live_filters, live_weight, parameter_name, start_of
from experiment.random_streams import generator as stream


def sipp(settings: SiPPSettings) -> weight_ranking.WeightMethod:
    """Keeps the weights of largest sensitivity in the whole network, unchanged.

    A weight's sensitivity is the mean over the positions of a sample, and the maximum over samples.

    Source: Baykal et al. 2019, https://arxiv.org/abs/1910.05422
    """

    def score(start: Start, calibration: Calibration | None, generator: torch.Generator) -> weight_ranking.WeightScores:
        return _sensitivities(start, calibration, settings, "mean", "SiPP")

    return weight_ranking.WeightMethod(score, settings)


def sipp_rand(settings: SampledSiPPSettings) -> SampledSiPP:
    """SiPP that samples all weights to keep."""
    return SampledSiPP(settings, "SiPPRand", hybrid=False)


def sipp_hybrid(settings: SampledSiPPSettings) -> SampledSiPP:
    """SiPP that samples the weights of a row only where the bound of its error is below that of keeping the largest."""
    return SampledSiPP(settings, "SiPPHybrid", hybrid=True)


@dataclass(frozen=True)
class DrawnWeights:
    """The analysis.

    Attributes:
        places: layer name -> the index of each of its weights in `rows`; -1 where it has no sensitivity.
        rings: (W,) the time at which each weight is first drawn.
        seed: for the number of further draws of each weight.
    """

    start: Start
    rows: Rows
    places: Mapping[str, Tensor]
    rings: Tensor
    seed: int


@dataclass(frozen=True)
class SampledSiPP:
    """Weights drawn with replacement, with probabilities p_i = s_i / S within a row, and scaled by count_i / (N p_i).

    A row consists of the weights of one sign of one filter. One multiplier nu shares the budget among rows, see
    `experiment.methods.masks.sipp_rows`. As nu falls, the number m of different weights grows in every row, and with it
    the number N of draws that produce m of them on average. Weights are added one by one until the budget is used up. A
    row that would keep more than all weights but one is kept whole and unscaled.

    Source: Baykal et al. 2019, https://arxiv.org/abs/1910.05422
    Differs: the number of draws is random with mean N, so that weights are drawn independently of each other; m, which
    the budget limits, is the number of different weights.

    Args:
        hybrid: keep the m largest weights of a row if C times the sensitivity of the others is at most err(m).
    """

    settings: SampledSiPPSettings
    label: str
    hybrid: bool

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> DrawnWeights:
        """Compute sensitivities, maximal over positions and samples, and the time at which each weight is first drawn.

        Raises: CompressionError: calibration data are missing, or layers receive NaN or infinity.
        """
        start = start_of(state, masked=True)
        start = start.of([parameter_name(name) for name in start.layers])
        rows, places = _rows(start, _sensitivities(start, calibration, self.settings, "max", self.label))
        seed = int(torch.randint(2**62, (), generator=generator))
        return DrawnWeights(start, rows, places, first_rings(rows.p, generator), seed)

    def plan(self, analysis: DrawnWeights, budget: Budget) -> Plan:
        """Add weights until the budget is used up, those without sensitivity last.

        Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
        """
        start, rows = analysis.start, analysis.rows
        costs_R = rows.positions if budget.quantity == "flops" else torch.ones_like(rows.S)
        drawn_R = torch.ones_like(rows.S, dtype=torch.bool)
        if self.hybrid:
            available = budget.limit - weight_ranking.unpruned_cost(start, budget)
            drawn_R = rows.better_drawn(rows.allocation(available, rows.filters * costs_R, costs_R))
        nu_W = rows.enters(analysis.rings, drawn_R, rows.filters * costs_R)
        by_time = torch.argsort(analysis.rings, stable=True)
        entry = by_time[torch.argsort(nu_W[by_time], descending=True, stable=True)]
        turns_W = torch.empty_like(nu_W)
        turns_W[entry] = -torch.arange(len(entry), dtype=torch.float64)
        plan = weight_ranking.plan_prefix(
            weight_ranking.rank_weights(start, _spread(analysis, turns_W, -float(len(entry)))), budget
        )
        stay, out = entry.tensor_split([_num_kept(start, plan)])
        scales_W = torch.ones_like(nu_W)
        if len(out):
            multipliers = float(nu_W[out[0]]) * rows.filters * costs_R
            _rescale(scales_W, analysis, stay, drawn_R, multipliers, out[0])
        scales = {parameter_name(name): scale for name, scale in _spread(analysis, scales_W, 1.0).items()}
        return replace(plan, scales=weight_ranking.plan_masked(start, {}, scales).scales)

    def fill(self, built: nn.Module, state: State, analysis: DrawnWeights, plan: Plan) -> None:
        """Write the state's weights into `built`, in place, scaled only if they are the ones that were sampled."""
        same = state is analysis.start.state
        write_whole(built, state.network, plan if same else replace(plan, scales={}))


def _rescale(
    scales_W: Tensor, analysis: DrawnWeights, stay: Tensor, drawn_R: Tensor, slope_R: Tensor, first_out: Tensor
) -> None:
    """Write the factors of the kept weights into `scales_W`, in place.

    Args:
        slope_R: -err'(m) of every row at the multiplier that would add `first_out`, the first weight that is left out.
    """
    rows = analysis.rows
    row = rows.row[first_out]
    until_R = rows.draws(num_samples(slope_R, rows.A))
    until_R[row] = analysis.rings[first_out]
    whole_R = multiplier(rows.number - 1, rows.A) >= slope_R
    whole_R[row] = False  # its last weights enter together, and the budget ends among them
    some = stay[(drawn_R & ~whole_R)[rows.row[stay]]]
    until = until_R[rows.row[some]]
    scales_W[some] = factors(rows.p[some], analysis.rings[some], until, stream("SiPP", analysis.seed))


def _num_kept(start: Start, plan: Plan) -> int:
    assert plan.parameters is not None
    return sum(start.alive_numbers.values()) - (start.count.parameters - plan.parameters)


def _spread(analysis: DrawnWeights, values_W: Tensor, other: float) -> dict[str, Tensor]:
    """The weights' values in their layers' shapes, `other` for those without sensitivity."""
    spread, values = {}, torch.cat([values_W, torch.tensor([other], dtype=torch.float64)])
    for name, places in analysis.places.items():
        weight = analysis.start.network.get_submodule(name).get_parameter("weight")
        spread[name] = values[places].to(weight.device)
    return spread


def _rows(start: Start, sensitivities: Mapping[str, Tensor]) -> tuple[Rows, dict[str, Tensor]]:
    """All weights with a sensitivity, by filter and sign, and their index for every place of every layer."""
    s, row, places, bounds, filters, positions = [], [], {}, [], [], []
    num_weights = num_rows = 0
    for name, info in start.layers.items():
        layer = start.network.get_submodule(name)
        filters_of_s = filters_of(layer, sensitivities[name]).cpu()
        s_FI = filters_of_s.flatten(1)
        negative_FI = live_filters(start.network, start.masks, name).cpu().flatten(1) < 0
        row_FI = num_rows + 2 * torch.arange(len(s_FI))[:, None] + negative_FI
        some_FI = s_FI > 0
        s.append(s_FI[some_FI])
        row.append(row_FI[some_FI])
        places_FI = torch.full(s_FI.shape, -1)
        places_FI[some_FI] = num_weights + torch.arange(len(s[-1]))
        places[name] = weight_of(layer, places_FI.reshape(filters_of_s.shape))
        num_weights, num_rows = num_weights + len(s[-1]), num_rows + 2 * len(s_FI)
        bounds += [union_bound(info)] * 2 * len(s_FI)
        filters += [info.out_features] * 2 * len(s_FI)
        positions += [info.positions] * 2 * len(s_FI)
    per_row = [torch.tensor(values, dtype=torch.float64) for values in (bounds, filters, positions)]
    none = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    return rows_of(torch.cat(s or none[0]), torch.cat(row or none[1]), *per_row), places


def _sensitivities(
    start: Start, calibration: Calibration | None, settings: SampledSiPPSettings, reduction: Reduction, label: str
) -> dict[str, Tensor]:
    inputs = calibration_inputs(calibration, start.state, label)
    weights = {name: live_weight(start.network, start.masks, name) for name in start.layers}
    return weight_sensitivities(start.network, weights, inputs, reduction, settings.positions)
