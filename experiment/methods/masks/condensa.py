"""Condensa's schemes that mask: single weights of the whole network, or blocks of linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from experiment.errors import CompressionError
from experiment.layers.build import write_whole
from experiment.layers.plan import Plan, State
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest
from experiment.methods.condensa_units import CRITERIA, Norm
from experiment.methods.layer_patterns import matching, own_values
from experiment.methods.masks.settings import BlockPruneSettings, PruneSettings
from experiment.methods.masks.unit_ranking import UnitRanking, UnitShape, rank_units
from experiment.methods.masks.weight_ranking import kept_shares, plan_masked
from experiment.methods.settings import LayerDensity
from experiment.methods.starting_state import Start, start_of


@dataclass(frozen=True)
class UnitMethod:
    """Masks the units that come last in one ranking of those of all layers; biases and BatchNorm stay.

    Of n units of the original network's eligible layers int(density * n) stay, whatever the budget, or without a
    density as many as the budget allows; equal ones in network order. A layer with a density of its own is a ranking
    of its own, and is pruned first.

    Args:
        label: of the method, for messages.
        linear: whether linear layers alone are pruned.
        align: numbers of units that a layer keeps are multiples of this.
    """

    label: str
    density: float | None
    ignore: tuple[str, ...]
    layers: Mapping[str, LayerDensity]
    units: UnitShape
    norm: Norm
    linear: bool = False
    align: int = 1

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> UnitRanking:
        """The ranking of all units but those of layers with a density of their own, which are pruned here.

        Raises: ConfigError: a pattern names no layer, or `layers` contradicts itself or `ignore`. CompressionError:
            there is no layer to prune, a density keeps nothing, or blocks do not divide a layer.
        """
        start = self._start_of(state)
        known = list(start.layers)
        ignored = matching(self.ignore, known, self.label)
        eligible = [name for name in known if name not in ignored]
        if not eligible:
            what = "linear layer" if self.linear else "convolution or linear layer"
            raise CompressionError(f"{self.label}: there is no {what} to prune that `ignore` does not name.")
        self._check_blocks(start, eligible)
        own = own_values(self.layers, known, ignored, self.label)
        masks: dict[str, torch.Tensor] = {}
        for name, value in own.items():
            alone = rank_units(start, [name], self.units, self.norm, self.align)
            masks |= alone.masks(alone.of_density(value.density))
        if masks:
            start = self._start_of(replace(state, masks=plan_masked(start, masks).masks))
        rest = [name for name in eligible if name not in own]
        return rank_units(start, rest, self.units, self.norm, self.align)

    def plan(self, analysis: UnitRanking, budget: Budget) -> Plan:
        """The masks of the density, or of the budget.

        Raises: InfeasibleBudget: they leave more than the budget, or it does not pay for what is never pruned.
            CompressionError: the density keeps nothing.
        """
        if self.density is not None:
            counts = analysis.of_density(self.density)
            check_smallest(analysis.cost(counts, budget), budget)
        elif analysis.start.allows(budget):
            return analysis.start.unchanged(kept_shares(analysis.start, {}))
        else:
            counts = analysis.of_budget(budget)
        return plan_masked(analysis.start, analysis.masks(counts))

    def fill(self, built: nn.Module, state: State, analysis: UnitRanking, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)

    def _start_of(self, state: State) -> Start:
        start = start_of(state, masked=True)
        layers = {name: info for name, info in start.layers.items() if info.kind == "linear" or not self.linear}
        return replace(start, layers=layers)

    def _check_blocks(self, start: Start, layers: list[str]) -> None:
        if self.units.block is None:
            return
        shapes = {name: tuple(start.network.get_submodule(name).get_parameter("weight").shape) for name in layers}
        wrong = [
            f"'{name}' {shape}"
            for name, shape in shapes.items()
            if any(side % size for side, size in zip(shape, self.units.block, strict=True))
        ]
        if wrong:
            raise CompressionError(
                f"{self.label}: block_size {self.units.block} must divide the weights of all layers, and does not "
                f"divide those of {', '.join(wrong)}. Choose another, or name these layers under `ignore`."
            )


def prune(settings: PruneSettings) -> UnitMethod:
    """Global magnitude pruning: of the |w| of all eligible layers the int(density * number) largest stay.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: exactly that many stay, equal ones in network order, where a threshold keeps all that equal it.
    """
    s = settings
    return UnitMethod("Prune", s.density, s.ignore, s.layers, UnitShape(), lambda units: units[:, 0])


def block_prune(settings: BlockPruneSettings) -> UnitMethod:
    """As Prune for blocks of linear layers' weights, by a norm of the magnitudes in each.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: exactly int(density * number) blocks before rounding down to `align`, which here leaves a layer that keeps
    any block at least `align` of them, where theirs may take its last ones.
    """
    s = settings
    norm = CRITERIA[s.criteria]
    return UnitMethod(
        "BlockPrune", s.density, s.ignore, s.layers, UnitShape(s.block_size), norm, linear=True, align=s.align
    )
