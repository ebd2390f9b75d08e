"""Rankings of all live weights of a network by any score, and the masks that a budget leaves of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, kind_of
from experiment.layers.build import unslice_mask, write_whole
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
"""Layer name -> the scores of its weights, in the shape of the weight in `Start.network`. Larger ones are kept."""

ScoreWeights = Callable[[Start, Calibration | None, torch.Generator], WeightScores]


@dataclass(frozen=True)
class WeightMethod:
    """Masks the last weights of one ranking. Biases and BatchNorm are never pruned; the budget pays for them first.

    Args:
        score: computes the scores of all weights.
        rank: `rank_weights`, in which all layers compete, or `rank_within_layers`.
    """

    score: ScoreWeights
    rank: Callable[[Start, WeightScores], WeightRanking]

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> WeightRanking:
        """Score and rank all weights that the state's masks leave.

        Raises: CompressionError: a weight or score is NaN or infinite, or calibration data are missing.
        """
        start = start_of(state, masked=True)
        return self.rank(start, self.score(start, calibration, generator))

    def plan(self, analysis: WeightRanking, budget: Budget) -> Plan:
        """Keep as many of the first weights as fit.

        Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
        """
        return plan_prefix(analysis, budget)

    def fill(self, built: nn.Module, state: State, analysis: WeightRanking, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)


def rank_weights(start: Start, scores: WeightScores) -> WeightRanking:
    """Rank all live weights by score across layers; ties go by network order.

    Args:
        scores: of every compressible layer, on its device; those of masked weights are ignored.
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
    """The ranking of which every prefix keeps the same share of every layer's live weights, those of largest score.

    The k-th of a layer's n weights comes at the share (k - 1/2) / n, so that a share rho keeps round(rho n) of them;
    at equal shares layers alternate in network order.

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


def plan_prefix(ranking: WeightRanking, budget: Budget) -> Plan:
    """Keep the longest prefix of a ranking that fits and mask the other weights.

    A weight costs 1 or, under a budget of FLOPs, the number of output positions of its layer.

    Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
    """
    start = ranking.start
    if start.allows(budget):
        return plan_masked(start, {})
    num_kept = _longest_prefix(ranking, budget)
    total = sum(info.weight_numel for info in start.layers.values())
    stays = torch.zeros(total, dtype=torch.bool, device=ranking.places.device)
    stays[ranking.places[:num_kept]] = True
    masks = {}
    for name, begin in zip(ranking.layers, ranking.starts, strict=True):
        shape = start.network.get_submodule(name).get_parameter("weight").shape
        masks[name] = stays[begin : begin + shape.numel()].reshape(shape)
    return plan_masked(start, masks)


def plan_masked(start: Start, masks: Mapping[str, Tensor], scales: Mapping[str, Tensor] | None = None) -> Plan:
    """The plan that keeps these weights; without masks, the plan that changes nothing.

    Args:
        masks: layer name -> which of its weights are kept, in the shape of the weight in `Start.network`; none that the
            state masks.
        scales: layer name -> factors for the kept weights, in the same shape.
    """
    original = {}
    for name, mask in masks.items():
        parameter = parameter_name(name)
        if parameter in start.masks or not bool(mask.all()):  # a layer that is and was whole needs no mask
            original[parameter] = _original_shape(start, name, mask)
    before = sum(int(alive_weights(start, name).sum()) for name in masks)
    return Plan(
        masks={**start.state.masks, **original},
        kept=dict(start.state.kept),
        parameters=start.count.parameters - before + sum(int(mask.sum()) for mask in masks.values()),
        details=_kept_shares(start, masks),
        scales={parameter_name(name): _original_shape(start, name, scale) for name, scale in (scales or {}).items()},
    )


def alive_weights(start: Start, layer: str) -> Tensor:
    """Which weights of a layer the state's masks leave, on the weight's device."""
    weight = start.network.get_submodule(layer).get_parameter("weight")
    mask = start.masks.get(parameter_name(layer))
    return torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device)


def weight_costs(start: Start, budget: Budget) -> dict[str, int]:
    """The cost of each weight of a layer: 1 or, under a budget of FLOPs, the layer's output positions."""
    return {name: info.positions if budget.quantity == "flops" else 1 for name, info in start.layers.items()}


def unpruned_cost(start: Start, budget: Budget, layers: Collection[str] | None = None) -> int:
    """The network's cost without the live weights of these layers (by default, of all compressible ones)."""
    costs = weight_costs(start, budget)
    pruned = start.layers if layers is None else layers
    weights = sum(int(alive_weights(start, name).sum()) * costs[name] for name in pruned)
    return start.cost(budget.quantity) - weights


def _kept_shares(start: Start, masks: Mapping[str, Tensor]) -> dict[str, dict[str, Detail]]:
    """The kept share of every layer's weights, relative to the original layer."""
    details: dict[str, dict[str, Detail]] = {}
    for name in start.layers:
        mask = masks[name] if name in masks else alive_weights(start, name)
        original = start.state.network.get_submodule(name).get_parameter("weight").numel()
        details[name] = {"kept": int(mask.sum()) / original}
    return details


def _ranked(values: Tensor, alive: Tensor) -> Tensor:
    """The places of the live values, the largest value first, equal ones in order."""
    behind = values.masked_fill(~alive, -torch.inf)
    return torch.argsort(behind, descending=True, stable=True)[: int(alive.sum())]


def _check(start: Start, scores: WeightScores) -> None:
    if not isinstance(scores, Mapping):
        raise CompressionError(
            f"the scores of weights must be a mapping from layers to tensors. Got {kind_of(scores)}."
        )
    for name in start.layers:
        alive = alive_weights(start, name)
        score = scores.get(name)
        if not isinstance(score, Tensor) or score.shape != alive.shape:
            came = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else kind_of(score)
            raise CompressionError(
                f"layer '{name}': the scores of its weights must be a tensor of shape {tuple(alive.shape)}. Got {came}."
            )
        if not score[alive].isfinite().all():
            raise CompressionError(
                f"layer '{name}': the scores of its weights must be finite. Got NaN or infinity: are the calibration "
                f"data finite, and transformed like the training data?"
            )


def _longest_prefix(ranking: WeightRanking, budget: Budget) -> int:
    """How many weights of the ranking the budget pays for, after everything that is never pruned."""
    start, unpruned = ranking.start, unpruned_cost(ranking.start, budget)
    check_smallest(unpruned, budget)
    if budget.quantity == "parameters":
        return budget.limit - unpruned
    each = torch.tensor(list(weight_costs(start, budget).values()), dtype=torch.int64)
    sizes = torch.tensor([info.weight_numel for info in start.layers.values()], dtype=torch.int64)
    costs = torch.repeat_interleave(each, sizes).to(ranking.places.device)
    cumulative = torch.cumsum(costs[ranking.places], 0)
    return int(torch.searchsorted(cumulative, budget.limit - unpruned, right=True))


def _original_shape(start: Start, layer: str, tensor: Tensor) -> Tensor:
    shape = start.state.network.get_submodule(layer).get_parameter("weight").shape
    return unslice_mask(tensor, shape, start.state.kept, parameter_name(layer))
