"""Masks from any class of torch.nn.utils.prune or a subclass of your own: the same share of every layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from experiment.errors import CompressionError, ConfigError, kind_of
from experiment.layers.build import write_whole
from experiment.layers.plan import Plan, State
from experiment.layers.read_parameters import shown
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest, longest
from experiment.methods.masks.selection import same_shares
from experiment.methods.masks.settings import TorchPruneSettings
from experiment.methods.masks.weight_ranking import plan_masked, unpruned_cost, weight_costs
from experiment.methods.starting_state import Start, start_of
from experiment.random_streams import seeded
from experiment.registry import resolve


@dataclass(frozen=True)
class UnitOrder:
    """The analysis: how many units (weights or channels) there are, of which all parameters keep the same share.

    Attributes:
        units: parameter name -> number of units that it has left.
        masks: (parameter, removed units) -> its mask, for the numbers that a search has asked for.
    """

    start: Start
    units: Mapping[str, int]
    seed: int
    masks: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def removed(self, num_kept: int) -> dict[str, int]:
        """The number of units that every parameter loses if `num_kept` are kept, the same share everywhere."""
        kept = same_shares(list(self.units.values()), [1] * len(self.units), num_kept)
        return {name: total - n for (name, total), n in zip(self.units.items(), kept, strict=True)}


@dataclass(frozen=True)
class TorchPrune:
    """The masks of `method(amount=..., **kwargs).compute_mask`, with the amount that the budget requires.

    Units are weights or, for PRUNING_TYPE 'structured', the channels along `dim`. Every layer keeps the largest share
    rho of its n units that fits, round(rho n); the layers take the last step one after the other. The amount is the
    fraction of the n units that is removed, a float in [0, 1]. Masked units remain masked, and the amount is a
    fraction of the rest, as in torch's PruningContainer. Structured masks leave the layers' shapes unchanged.

    Args:
        method: a subclass of BasePruningMethod.
        kwargs: its arguments except `amount`.
    """

    method: Any  # torch declares no types here
    kwargs: Mapping[str, Any]

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> UnitOrder:
        """Count the units of every parameter that can be masked."""
        start = start_of(state, masked=True)
        units = {name: self._num_units(start, name) for name in start.weights}
        return UnitOrder(start, units, int(torch.randint(2**62, (), generator=generator)))

    def plan(self, analysis: UnitOrder, budget: Budget) -> Plan:
        """Keep as many units as fit. How many weights their masks leave is counted, not assumed.

        Raises: InfeasibleBudget: the masks of the largest amount leave more than the budget.
            CompressionError: the method fails, or returns no mask of the weight's shape.
        """
        start, costs = analysis.start, weight_costs(analysis.start, budget)
        if start.allows(budget):
            return plan_masked(start, {})
        analysis = replace(analysis, units={name: n for name, n in analysis.units.items() if costs[name]})
        check_smallest(self._cost(analysis, 0, budget), budget)
        most = longest(sum(analysis.units.values()), lambda n: self._cost(analysis, n, budget) <= budget.limit)
        masks = {name: self._mask(analysis, name, amount) for name, amount in analysis.removed(most).items()}
        analysis.masks.clear()
        return plan_masked(start, masks)

    def fill(self, built: nn.Module, state: State, analysis: UnitOrder, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)

    def _num_units(self, start: Start, name: str) -> int:
        alive = start.alive(name)
        if self.method.PRUNING_TYPE != "structured":
            return int(alive.sum())
        dim = vars(self._made(0.0)).get("dim")
        if not isinstance(dim, int) or not -alive.dim() <= dim < alive.dim():
            raise CompressionError(
                f"layer '{shown(name)}': {self.method.__name__} removes channels along dim {dim!r}, and the weight has "
                f"shape {tuple(alive.shape)}. Expected one of its dimensions, such as kwargs: {{dim: 0}} for filters."
            )
        return int(alive.transpose(0, dim).flatten(1).any(1).sum())

    def _cost(self, analysis: UnitOrder, num_kept: int, budget: Budget) -> int:
        costs = weight_costs(analysis.start, budget)
        removed = analysis.removed(num_kept)
        kept = {name: int(self._mask(analysis, name, amount).sum()) for name, amount in removed.items()}
        return unpruned_cost(analysis.start, budget) + sum(costs[name] * n for name, n in kept.items())

    def _mask(self, analysis: UnitOrder, name: str, amount: int) -> Tensor:
        """The parameter's mask without `amount` of its units; random methods draw the same numbers for every amount."""
        if (name, amount) not in analysis.masks:
            layer, alive, weight = shown(name), analysis.start.alive(name), analysis.start.live(name)
            with seeded("torch.nn.utils.prune", analysis.seed, layer, device=weight.device):
                fraction = amount / max(1, analysis.units[name])
                mask = self._computed(weight, alive, fraction, layer) if amount else alive
            if mask.shape != weight.shape:
                raise CompressionError(
                    f"layer '{layer}': {self.method.__name__}.compute_mask must return a mask of the weight's shape "
                    f"{tuple(weight.shape)}. Got {tuple(mask.shape)}."
                )
            analysis.masks[name, amount] = (mask != 0) & alive
        return analysis.masks[name, amount]

    def _computed(self, weight: Tensor, alive: Tensor, amount: float, layer: str) -> Tensor:
        method = self._made(amount)
        try:
            if alive.all():
                mask: Tensor = method.compute_mask(weight, default_mask=alive.to(weight.dtype))
                return mask
            method._tensor_name = "weight"  # the attributes that the container reads
            container: Any = prune.PruningContainer(method)
            left: Tensor = container.compute_mask(weight, alive.to(weight.dtype))
            return left
        except Exception as error:  # any error of the user's method
            raise CompressionError(
                f"layer '{layer}': {self.method.__name__}.compute_mask fails with amount={amount:g}, the fraction to "
                f"remove, on a weight of shape {tuple(weight.shape)}: {type(error).__name__}: {error}"
            ) from error

    def _made(self, amount: float) -> Any:
        try:
            return self.method(amount=amount, **self.kwargs)
        except Exception as error:  # the user's arguments, or method
            raise CompressionError(
                f"TorchPrune: {self.method.__name__} cannot be made with amount={amount:g} and kwargs "
                f"{dict(self.kwargs)}: {type(error).__name__}: {error}. The setting `kwargs` holds its arguments, "
                "except `amount`."
            ) from error


def torch_prune(settings: TorchPruneSettings) -> TorchPrune:
    """The method that the settings name.

    Raises: ConfigError: it cannot be imported, is no subclass of BasePruningMethod, or `kwargs` contain an amount.
    """
    method = resolve(settings.method)
    if not isinstance(method, type) or not issubclass(method, prune.BasePruningMethod):
        kind = "another class" if isinstance(method, type) else kind_of(method)
        raise ConfigError(
            f"TorchPrune.method: must be a subclass of torch.nn.utils.prune.BasePruningMethod. Got {settings.method}, "
            f"{kind}."
        )
    if "amount" in settings.kwargs:
        raise ConfigError("TorchPrune.kwargs.amount: the keep ratio determines the amount. Remove it.")
    return TorchPrune(method, dict(settings.kwargs))
