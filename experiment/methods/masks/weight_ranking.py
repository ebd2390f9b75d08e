"""Rankings of all live weights of a network by any score, and the masks that a budget leaves of them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, kind_of
from experiment.inputs import Inputs
from experiment.layers.build import unslice_mask, write_whole
from experiment.layers.fit_masked import fit_masked, live_copy
from experiment.layers.plan import Detail, Plan, State
from experiment.layers.read_parameters import shown
from experiment.methods.base import Budget, Calibration, calibration_inputs
from experiment.methods.budget_search import check_smallest
from experiment.methods.layer_patterns import not_ignored
from experiment.methods.masks import selection
from experiment.methods.masks.comparisons import erk_share, in_filters, keep_pattern, lamp, negated
from experiment.methods.masks.settings import WeightSettings
from experiment.methods.starting_state import Start, parameter_name, start_of

LARGE = 2**20  # elements, from which on a histogram is kept: it takes an eighth of their memory


@dataclass(frozen=True)
class WeightRanking:
    """The live weights of a network by score, the largest first, equal ones in network order.

    Attributes:
        parts: parameter name -> the scores of its elements, in network order.
        shares: parameter name -> the share of its elements that it keeps, relative to others; None if all compete.
        ignored: parameters that are kept whole by the setting `ignore`.
        inputs: calibration data to which the weights that are kept are fitted.
    """

    start: Start
    parts: Mapping[str, selection.Part]
    shares: Mapping[str, float] | None = None
    inputs: Inputs | None = None
    ignored: frozenset[str] = frozenset()

    def of_budget(self, budget: Budget) -> dict[str, Tensor]:
        """Parameter name -> which elements are in the longest prefix that fits; those without any cost stay whole.

        An element costs 1 or, under a budget of FLOPs, its multiply-adds.

        Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
        """
        costs = {name: cost for name, cost in weight_costs(self.start, budget).items() if name in self.parts and cost}
        unpruned = unpruned_cost(self.start, budget, costs)
        check_smallest(unpruned, budget)
        flops = {cost: counts for cost, counts in self._leading.items() if cost}
        return self._longest(costs, budget.limit - unpruned, flops if budget.quantity == "flops" else self._equal)

    def of_number(self, number: int) -> dict[str, Tensor]:
        """Parameter name -> which elements are among the first `number`."""
        return self._longest(dict.fromkeys(self.parts, 1), number, self._equal)

    def _longest(self, costs: Mapping[str, int], limit: int, leading: selection.Histograms) -> dict[str, Tensor]:
        parts, each = [self.parts[name] for name in costs], list(costs.values())
        if self.shares is None:
            kept = selection.longest_prefix(parts, each, limit, self._dtype, leading)
        else:
            sizes, shares = [self.start.alive_numbers[name] for name in costs], [self.shares[name] for name in costs]
            numbers = selection.same_shares(sizes, each, limit, shares)
            kept = [self._largest(name, number) for name, number in zip(costs, numbers, strict=True)]
        return dict(zip(costs, kept, strict=True))

    def _largest(self, name: str, number: int) -> Tensor:
        """Which scores of a parameter are the `number` largest."""
        part = self.parts[name]
        dtype = selection.common_dtype([part])
        if (leading := self._own.get(name)) is None:
            leading = selection.histograms([part], [1], dtype)
            if part.shape.numel() >= LARGE:
                self._own[name] = leading
        return selection.longest_prefix([part], [1], number, dtype, leading)[0]

    @cached_property
    def _own(self) -> dict[str, selection.Histograms]:
        """By parameter, once for all budgets."""
        return {}

    @cached_property
    def _dtype(self) -> torch.dtype:
        return selection.common_dtype(list(self.parts.values()))

    @cached_property
    def _leading(self) -> selection.Histograms:
        """By multiply-adds, once for all budgets."""
        costs = [self.start.weights[name] for name in self.parts]
        return {} if self.shares is not None else selection.histograms(list(self.parts.values()), costs, self._dtype)

    @property
    def _equal(self) -> selection.Histograms:
        """For equal costs."""
        return {1: torch.stack(list(self._leading.values())).sum(0)} if self._leading else {}


WeightScores = Mapping[str, Tensor | selection.Part]
"""Name of a layer, or of a parameter -> the scores of its elements, in its shape. Larger ones are kept."""

ScoreWeights = Callable[[Start, Calibration | None, torch.Generator], WeightScores]


@dataclass(frozen=True)
class WeightMethod:
    """Masks the last weights of a ranking. Biases and BatchNorm are never pruned; the budget pays for them first.

    Args:
        score: computes scores, of the weights of all layers in `Start.layers` at least; other parameters of
            `Start.weights` are pruned if they have scores.
        settings: which scores are compared, and whether the kept weights are fitted.
    """

    score: ScoreWeights
    settings: WeightSettings = field(default_factory=WeightSettings)

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> WeightRanking:
        """Score all weights that the state's masks leave.

        Raises: CompressionError: a weight or score is NaN or infinite, or calibration data are missing.
        """
        start = start_of(state, masked=True)
        ranking = ranked(start, self.score(start, calibration, generator), self.settings)
        return (
            replace(ranking, inputs=calibration_inputs(calibration, state, "refit")) if self.settings.refit else ranking
        )

    def plan(self, analysis: WeightRanking, budget: Budget) -> Plan:
        """Keep as many of the first weights as fit, or those of the pattern.

        Raises: InfeasibleBudget: what is never pruned, or what the pattern keeps, exceeds the budget.
        """
        if self.settings.pattern is None:
            return plan_prefix(analysis, budget)
        masks = keep_pattern(analysis.start, analysis.parts, *self.settings.pattern)
        costs, start = weight_costs(analysis.start, budget), analysis.start
        kept = sum(costs[name] * int(mask.sum()) for name, mask in masks.items())
        check_smallest(unpruned_cost(start, budget, masks) + kept, budget)
        return plan_masked(start, masks)

    def fill(self, built: nn.Module, state: State, analysis: WeightRanking, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)
        if analysis.inputs is not None:
            changed = {shown(name) for name, mask in plan.masks.items() if mask is not state.masks.get(name)}
            own = [name for name, info in analysis.start.layers.items() if name in changed and not info.tied]
            fit_masked(built, live_copy(state, plan), own, analysis.inputs)


def ranked(start: Start, scores: WeightScores, settings: WeightSettings) -> WeightRanking:
    """The ranking of all live weights under settings. Errors as for `rank_weights`."""
    left = not_ignored(settings.ignore, [shown(name) for name in start.weights])
    ranking = rank_weights(start, scores, ignored=frozenset(n for n in start.weights if shown(n) not in left))
    parts, shares = dict(ranking.parts), None
    if settings.within_filters:
        parts = {name: in_filters(start, name, part) for name, part in parts.items()}
    if settings.allocation == "lamp":
        parts = {name: lamp(part, name) for name, part in parts.items()}
    elif settings.allocation != "global":
        shares = {name: erk_share(start, name) if settings.allocation == "erk" else 1.0 for name in parts}
    if settings.reverse:
        parts = {name: negated(part) for name, part in parts.items()}
    return replace(ranking, parts=parts, shares=shares)


def rank_weights(
    start: Start, scores: WeightScores, only: Collection[str] | None = None, ignored: frozenset[str] = frozenset()
) -> WeightRanking:
    """Rank all live weights by score across layers; ties go by network order.

    Args:
        scores: on the weights' devices; those of masked weights are ignored.
        only: names of the parameters to rank; None for all that have scores.
        ignored: names of parameters that are kept whole.
    Raises: CompressionError: scores of a layer are missing, or the score of a live weight is NaN or infinite.
    """
    parts = {name: part for name, part in _checked(start, scores, only).items() if name not in ignored}
    return WeightRanking(start.of(parts), parts, ignored=ignored)


def plan_prefix(ranking: WeightRanking, budget: Budget) -> Plan:
    """Keep the longest prefix of a ranking that fits and mask the other weights.

    Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
    """
    start = ranking.start
    return plan_masked(start, {} if start.allows(budget) else ranking.of_budget(budget))


def plan_masked(start: Start, masks: Mapping[str, Tensor], scales: Mapping[str, Tensor] | None = None) -> Plan:
    """The plan that keeps these weights; without masks, the plan that changes nothing.

    Args:
        masks: parameter name -> which of its elements are kept, in its shape in `Start.network`; none that the state
            masks.
        scales: parameter name -> factors for the kept elements, in the same shape.
    """
    before, original = start.alive_numbers, {}
    kept = {**before} | {name: int(torch.count_nonzero(mask)) for name, mask in masks.items()}
    for name, mask in masks.items():
        if name in start.masks or kept[name] < mask.numel():  # what is and was whole needs no mask
            original[name] = _original_shape(start, name, mask)
    details: dict[str, dict[str, Detail]] = {}
    for name in start.weights:
        share = kept[name] / start.state.network.get_parameter(name).numel()
        details |= {shown(known): {"kept": share} for known in start.all_names[name]}
    return Plan(
        masks={**start.state.masks, **original},
        kept=dict(start.state.kept),
        parameters=start.count.parameters + sum(kept[name] - before[name] for name in start.weights),
        details=details,
        scales={name: _original_shape(start, name, scale) for name, scale in (scales or {}).items()},
    )


def weight_costs(start: Start, budget: Budget) -> dict[str, int]:
    """The cost of each element of a parameter: 1 or, under a budget of FLOPs, its multiply-adds."""
    return {name: flops if budget.quantity == "flops" else 1 for name, flops in start.weights.items()}


def unpruned_cost(start: Start, budget: Budget, parameters: Collection[str] | None = None) -> int:
    """The network's cost without the live elements of these parameters (by default, of all that can be masked)."""
    costs = weight_costs(start, budget)
    pruned = start.weights if parameters is None else parameters
    return start.cost(budget.quantity) - sum(start.alive_numbers[name] * costs[name] for name in pruned)


def _checked(start: Start, scores: WeightScores, only: Collection[str] | None = None) -> dict[str, selection.Part]:
    """The scores by parameter."""
    if not isinstance(scores, Mapping):
        raise CompressionError(
            f"the scores of weights must be a mapping from layers to tensors. Got {kind_of(scores)}."
        )
    given = {name if name in start.weights else parameter_name(name): score for name, score in scores.items()}
    required = {parameter_name(name) for name in start.layers} if only is None else set(only)
    parts = {}
    for name in start.weights:
        if name not in given and name not in required:
            continue
        score, shape = given.get(name), start.network.get_parameter(name).shape
        if not isinstance(score, Tensor | selection.Part) or score.shape != shape:
            came = kind_of(score) if not isinstance(score, Tensor | selection.Part) else f"shape {tuple(score.shape)}"
            raise CompressionError(
                f"layer '{shown(name)}': the scores of its weights must be a tensor of shape {tuple(shape)}. "
                f"Got {came}."
            )
        alive = start.alive(name) if name in start.masks else None
        part = score if isinstance(score, selection.Part) else selection.elementwise(score)
        parts[name] = replace(part, alive=alive)
        if not all(bool(chunk.isfinite().all()) for chunk in parts[name].live()):
            raise CompressionError(
                f"layer '{shown(name)}': the scores of its weights must be finite. Got NaN or infinity: are the "
                f"calibration data finite, and transformed like the training data?"
            )
    return parts


def _original_shape(start: Start, name: str, tensor: Tensor) -> Tensor:
    return unslice_mask(tensor, start.state.network.get_parameter(name).shape, start.state.kept, name)
