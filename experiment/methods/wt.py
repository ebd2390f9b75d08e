"""Weight thresholding: the weights of largest magnitude in the whole network stay, the others are masked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import InfeasibleBudget
from experiment.layers.build import unslice_mask, write_whole
from experiment.layers.plan import Detail, Plan, State
from experiment.methods.base import Budget, Calibration
from experiment.methods.settings import WTSettings
from experiment.methods.start import Start, live_weight, parameter_name, start_of


@dataclass(frozen=True)
class Order:
    """The live weights of all compressible layers, largest magnitude first.

    Attributes:
        layers: names in network order; `starts[i]` is where layer i begins in the concatenation of all weights.
        places: (number of live weights,) positions in that concatenation, equal magnitudes in network order.
    """

    start: Start
    layers: tuple[str, ...]
    starts: tuple[int, ...]
    places: Tensor


@dataclass(frozen=True)
class WT:
    """Global magnitude pruning.

    All |w| of convolutions and linear layers compete; the budget's largest stay. Biases and BatchNorm are never pruned
    and are paid first. Ties go by network order.

    Source: Han et al. 2015, https://arxiv.org/abs/1506.02626
    """

    settings: WTSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Order:
        """One sort of all weights that the state's masks leave."""
        start = start_of(state)
        names = tuple(start.layers)
        sizes = [info.weight_numel for info in start.layers.values()]
        if not names:
            return Order(start, (), (), torch.zeros(0, dtype=torch.int64))
        magnitudes = torch.cat([live_weight(start.network, start.masks, name).abs().flatten() for name in names])
        alive = torch.cat([_alive(start, name).flatten() for name in names])
        magnitudes[~alive] = -1  # behind every live weight, the zeros among them included
        places = torch.argsort(magnitudes, descending=True, stable=True)[: int(alive.sum())]
        return Order(start, names, tuple(sum(sizes[:i]) for i in range(len(sizes))), places)

    def plan(self, analysis: Order, budget: Budget) -> Plan:
        """The longest prefix of the order that fits.

        A weight costs 1, or under a budget of FLOPs the positions at which its layer computes.

        Raises: InfeasibleBudget: what is never pruned already exceeds the budget.
        """
        start = analysis.start
        if start.allows(budget):
            return start.unchanged(_details(analysis, {}))
        num_kept = _longest_prefix(analysis, budget)
        stays = torch.zeros(_total(analysis), dtype=torch.bool, device=analysis.places.device)
        stays[analysis.places[:num_kept]] = True
        masks = {}
        for name, begin in zip(analysis.layers, analysis.starts, strict=True):
            info = start.layers[name]
            shape = start.network.get_submodule(name).get_parameter("weight").shape
            masks[name] = stays[begin : begin + info.weight_numel].reshape(shape)
        pruned = len(analysis.places) - num_kept
        return Plan(
            masks={**start.state.masks, **_original_shapes(start, masks)},
            kept=dict(start.state.kept),
            parameters=start.count.parameters - pruned,
            details=_details(analysis, masks),
        )

    def fill(self, built: nn.Module, state: State, analysis: Order, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)


def _alive(start: Start, name: str) -> Tensor:
    weight = start.network.get_submodule(name).get_parameter("weight")
    mask = start.masks.get(parameter_name(name))
    return torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device)


def _total(order: Order) -> int:
    return sum(info.weight_numel for info in order.start.layers.values())


def _longest_prefix(order: Order, budget: Budget) -> int:
    """How many weights of the order the budget pays for, after everything that is never pruned.

    Raises: InfeasibleBudget: it does not even pay for that.
    """
    if budget.quantity == "parameters":
        unpruned = order.start.count.parameters - len(order.places)
        num_kept = budget.limit - unpruned
    else:
        cumulative = torch.cumsum(_positions(order)[order.places], 0)
        unpruned = order.start.count.flops_unmasked - (int(cumulative[-1]) if len(cumulative) else 0)
        num_kept = int(torch.searchsorted(cumulative, budget.limit - unpruned, right=True))
    if budget.limit < unpruned:
        raise InfeasibleBudget(
            limit=budget.limit, smallest=unpruned, original=budget.original, quantity=budget.quantity
        )
    return num_kept


def _positions(order: Order) -> Tensor:
    """The multiply-adds of one sample that each weight of the concatenation takes part in."""
    infos = order.start.layers.values()
    each = torch.tensor([info.positions for info in infos], dtype=torch.int64)
    sizes = torch.tensor([info.weight_numel for info in infos], dtype=torch.int64)
    return torch.repeat_interleave(each, sizes).to(order.places.device)


def _original_shapes(start: Start, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks by parameter name on the original shapes; a layer that is whole and was so before needs none."""
    original = {}
    for layer, mask in masks.items():
        name = parameter_name(layer)
        if name in start.masks or not bool(mask.all()):
            shape = start.state.network.get_submodule(layer).get_parameter("weight").shape
            original[name] = unslice_mask(mask, shape, start.state.kept, name)
    return original


def _details(order: Order, masks: dict[str, Tensor]) -> dict[str, dict[str, Detail]]:
    """Kept share of every layer's weights, relative to the original layer."""
    start, details = order.start, {}
    for name in order.layers:
        mask = masks[name] if name in masks else _alive(start, name)
        original = start.state.network.get_submodule(name).get_parameter("weight").numel()
        kept: Detail = int(mask.sum()) / original
        details[name] = {"kept": kept}
    return details
