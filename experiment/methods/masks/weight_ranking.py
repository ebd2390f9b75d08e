"""One order of all live weights of a network, from any scores, and the masks that a budget leaves of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import unslice_mask, write_whole
from experiment.layers.compressible import LayerInfo
from experiment.layers.plan import Detail, Plan, State
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest
from experiment.methods.starting_state import Start, parameter_name, start_of


@dataclass(frozen=True)
class WeightRanking:
    """The live weights of all compressible layers, largest score first.

    Attributes:
        layers: names in network order; `starts[i]` is where layer i begins in the concatenation of all weights.
        places: (number of live weights,) positions in that concatenation, equal scores in network order.
    """

    start: Start
    layers: tuple[str, ...]
    starts: tuple[int, ...]
    places: Tensor


WeightScores = Mapping[str, Tensor]
"""Layer name -> the worth of each of its weights: the shape of the weight in `Start.network`. Larger ones stay."""

ScoreWeights = Callable[[Start, Calibration | None, torch.Generator], WeightScores]


@dataclass(frozen=True)
class WeightMethod:
    """Masks the weights that come last in one order. Biases and BatchNorm are never pruned and are paid first.

    Args:
        score: the worth of every weight.
        order: `rank_weights`, in which all layers compete, or `rank_within_layers`.
        every_layer: whether the score knows grouped and transposed convolutions, and those of one or three dimensions.
    """

    score: ScoreWeights
    order: Callable[[Start, WeightScores], WeightRanking]
    every_layer: bool = True

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> WeightRanking:
        """Scores of all weights, and one sort of those that the state's masks leave.

        Raises: CompressionError: a weight or score is NaN or infinite, or calibration data are missing.
        """
        start = start_of(state, masked=self.every_layer)
        return self.order(start, self.score(start, calibration, generator))

    def plan(self, analysis: WeightRanking, budget: Budget) -> Plan:
        """The longest prefix of the order that fits.

        Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
        """
        return plan_prefix(analysis, budget)

    def fill(self, built: nn.Module, state: State, analysis: WeightRanking, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)


def rank_weights(start: Start, scores: WeightScores) -> WeightRanking:
    """All live weights by their scores, whatever their layer; ties go by network order.

    Args:
        scores: of every compressible layer, on its device; those of masked places are not looked at.
    Raises: CompressionError: the score of a live weight is NaN or infinite.
    """
    names, sizes = tuple(start.layers), [info.weight_numel for info in start.layers.values()]
    _check(start, scores)
    if not names:
        return WeightRanking(start, (), (), torch.zeros(0, dtype=torch.int64))
    alive = torch.cat([alive_weights(start, name).flatten() for name in names])
    places = _ranked(torch.cat([scores[name].flatten() for name in names]), alive)
    return WeightRanking(start, names, tuple(sum(sizes[:i]) for i in range(len(sizes))), places)


def rank_within_layers(start: Start, scores: WeightScores) -> WeightRanking:
    """The order of which every prefix keeps the same share of every layer's live weights, those of largest score.

    The k-th of a layer's n weights comes at the share (k - 1/2) / n, so that a share rho keeps round(rho n) of them;
    at equal shares layers take their turns in network order.

    Raises: CompressionError: the score of a live weight is NaN or infinite.
    """
    _check(start, scores)
    shares = {}
    for name in start.layers:
        places = _ranked(scores[name].flatten(), alive_weights(start, name).flatten())
        ranks = torch.arange(len(places), dtype=torch.float64, device=places.device)
        share = torch.zeros(scores[name].numel(), dtype=torch.float64, device=places.device)
        share[places] = (ranks + 0.5) / max(1, len(places))
        shares[name] = -share.reshape(scores[name].shape)
    return rank_weights(start, shares)


def plan_prefix(order: WeightRanking, budget: Budget) -> Plan:
    """The longest prefix of an order that fits; the other weights are masked.

    A weight costs 1, or under a budget of FLOPs the positions at which its layer computes.

    Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
    """
    start = order.start
    if start.allows(budget):
        return start.unchanged(kept_shares(start, {}))
    num_kept = _longest_prefix(order, budget)
    total = sum(info.weight_numel for info in start.layers.values())
    stays = torch.zeros(total, dtype=torch.bool, device=order.places.device)
    stays[order.places[:num_kept]] = True
    masks = {}
    for name, begin in zip(order.layers, order.starts, strict=True):
        shape = start.network.get_submodule(name).get_parameter("weight").shape
        masks[name] = stays[begin : begin + shape.numel()].reshape(shape)
    return plan_masked(start, masks)


def plan_masked(start: Start, masks: Mapping[str, Tensor], scales: Mapping[str, Tensor] | None = None) -> Plan:
    """The plan that leaves these weights.

    Args:
        masks: layer name -> which of its weights stay, in the shape of the weight in `Start.network`; of weights that
            the state masks, none may.
        scales: layer name -> by what factors the weights that stay are multiplied, likewise.
    """
    original = {}
    for name, mask in masks.items():
        parameter = parameter_name(name)
        if parameter in start.masks or not bool(mask.all()):  # a layer that is whole and was so before needs none
            original[parameter] = _original_shape(start, name, mask)
    before = sum(int(alive_weights(start, name).sum()) for name in masks)
    return Plan(
        masks={**start.state.masks, **original},
        kept=dict(start.state.kept),
        parameters=start.count.parameters - before + sum(int(mask.sum()) for mask in masks.values()),
        details=kept_shares(start, masks),
        scales={parameter_name(name): _original_shape(start, name, scale) for name, scale in (scales or {}).items()},
    )


def alive_weights(start: Start, layer: str) -> Tensor:
    """Which weights of a layer the state's masks leave, on the weight's device."""
    weight = start.network.get_submodule(layer).get_parameter("weight")
    mask = start.masks.get(parameter_name(layer))
    return torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device)


def unmasked_cost(start: Start, budget: Budget, layers: Mapping[str, LayerInfo] | None = None) -> int:
    """What the network costs besides the live weights of compressible layers, or of some: that is never pruned."""
    flops = budget.quantity == "flops"
    pruned = start.layers if layers is None else layers
    weights = sum(
        int(alive_weights(start, name).sum()) * (info.positions if flops else 1) for name, info in pruned.items()
    )
    return start.cost(budget.quantity) - weights


def kept_shares(start: Start, masks: Mapping[str, Tensor]) -> dict[str, dict[str, Detail]]:
    """Kept share of every layer's weights, relative to the original layer."""
    details: dict[str, dict[str, Detail]] = {}
    for name in start.layers:
        mask = masks[name] if name in masks else alive_weights(start, name)
        original = start.state.network.get_submodule(name).get_parameter("weight").numel()
        details[name] = {"kept": int(mask.sum()) / original}
    return details


def _ranked(values: Tensor, alive: Tensor) -> Tensor:
    """The places of the values that are alive, the largest value first, equal ones as they stand."""
    behind = values.masked_fill(~alive, -torch.inf)
    return torch.argsort(behind, descending=True, stable=True)[: int(alive.sum())]


def _check(start: Start, scores: WeightScores) -> None:
    for name in start.layers:
        if not scores[name][alive_weights(start, name)].isfinite().all():
            raise CompressionError(
                f"layer '{name}': the scores of its weights must be finite. Got NaN or infinity: are the calibration "
                f"data finite, and transformed like the training data?"
            )


def _longest_prefix(order: WeightRanking, budget: Budget) -> int:
    """How many weights of the order the budget pays for, after everything that is never pruned.

    Raises: InfeasibleBudget: it does not even pay for that.
    """
    unpruned = unmasked_cost(order.start, budget)
    check_smallest(unpruned, budget)
    if budget.quantity == "parameters":
        return budget.limit - unpruned
    cumulative = torch.cumsum(_positions(order)[order.places], 0)
    return int(torch.searchsorted(cumulative, budget.limit - unpruned, right=True))


def _positions(order: WeightRanking) -> Tensor:
    """The multiply-adds of one sample that each weight of the concatenation takes part in."""
    infos = order.start.layers.values()
    each = torch.tensor([info.positions for info in infos], dtype=torch.int64)
    sizes = torch.tensor([info.weight_numel for info in infos], dtype=torch.int64)
    return torch.repeat_interleave(each, sizes).to(order.places.device)


def _original_shape(start: Start, layer: str, tensor: Tensor) -> Tensor:
    shape = start.state.network.get_submodule(layer).get_parameter("weight").shape
    return unslice_mask(tensor, shape, start.state.kept, parameter_name(layer))
