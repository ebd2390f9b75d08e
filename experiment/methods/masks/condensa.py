"""Condensa's schemes that mask: single weights of the whole network, or blocks of linear layers."""

from __future__ import annotations

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
from experiment.methods.masks.weight_ranking import plan_masked
from experiment.methods.settings import DensitySettings
from experiment.methods.starting_state import Start, start_of


@dataclass(frozen=True)
class UnitMethod:
    """Masks the last units of one ranking of all layers; biases and BatchNorm are never pruned.

    Of the n units of the original network's eligible layers, int(density * n) are kept, for any keep ratio; without a
    density, as many as the budget allows. Ties are in network order. A layer with its own density is ranked separately
    and pruned first.

    Args:
        settings: density, ignored layers, layers with a density of their own.
        label: the method's name in messages.
        shape: what a unit is.
        norm: the score of a unit.
        linear: whether only linear layers are pruned.
        align: the number of units that a layer keeps is a multiple of this.
    """

    settings: DensitySettings
    label: str
    shape: UnitShape
    norm: Norm
    linear: bool = False
    align: int = 1

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> UnitRanking:
        """Rank all units except those of layers with a density of their own, which are pruned here.

        Raises: ConfigError: a pattern names no layer, or `layers` contradicts itself or `ignore`. CompressionError:
            there is no layer to prune, a density keeps nothing, or blocks do not divide a layer.
        """
        start, label = self._start_of(state), self.label
        known = list(start.layers)
        ignored = matching(self.settings.ignore, known, label)
        eligible = [name for name in known if name not in ignored]
        if not eligible:
            what = "linear layer" if self.linear else "convolution or linear layer"
            raise CompressionError(f"{label}: the network has no {what} to prune that `ignore` does not exclude.")
        self._check_blocks(start, eligible)
        own = own_values(self.settings.layers, known, ignored, label)
        masks: dict[str, torch.Tensor] = {}
        for name, value in own.items():
            alone = rank_units(start, [name], self.shape, self.norm, self.align)
            masks |= alone.masks(alone.of_density(value.density))
        if masks:
            start = self._start_of(replace(state, masks=plan_masked(start, masks).masks))
        rest = [name for name in eligible if name not in own]
        return rank_units(start, rest, self.shape, self.norm, self.align)

    def plan(self, analysis: UnitRanking, budget: Budget) -> Plan:
        """Mask the units that the density or the budget does not keep.

        Raises: InfeasibleBudget: the density leaves more than the budget, or what is never pruned exceeds it.
            CompressionError: the density keeps nothing.
        """
        start = analysis.start
        if self.settings.density is not None:
            counts = analysis.of_density(self.settings.density)
            check_smallest(analysis.cost(counts, budget), budget)
        elif start.allows(budget):
            return plan_masked(start, {})
        else:
            counts = analysis.of_budget(budget)
        return plan_masked(start, analysis.masks(counts))

    def fill(self, built: nn.Module, state: State, analysis: UnitRanking, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)

    def _start_of(self, state: State) -> Start:
        start = start_of(state, masked=True)
        layers = {name: info for name, info in start.layers.items() if info.kind == "linear" or not self.linear}
        return replace(start, layers=layers)

    def _check_blocks(self, start: Start, layers: list[str]) -> None:
        block = self.shape.block
        if block is None:
            return
        shapes = {name: tuple(start.network.get_submodule(name).get_parameter("weight").shape) for name in layers}
        wrong = [
            f"'{name}' {shape}"
            for name, shape in shapes.items()
            if any(side % size for side, size in zip(shape, block, strict=True))
        ]
        if wrong:
            raise CompressionError(
                f"{self.label}: block_size {block} must divide the weights of all layers. It does not divide "
                f"those of {', '.join(wrong)}. Choose another size, or exclude these layers with `ignore`."
            )


def prune(settings: PruneSettings) -> UnitMethod:
    """Global magnitude pruning: keeps the int(density * number) largest |w| of all eligible layers.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: keeps exactly that number, ties in network order; a threshold would keep all ties.
    """
    return UnitMethod(settings, "Prune", UnitShape(), lambda units: units[:, 0])


def block_prune(settings: BlockPruneSettings) -> UnitMethod:
    """Like Prune, for blocks of linear layers' weights, scored by a norm of the magnitudes in each block.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: exactly int(density * number) blocks before rounding down to `align`; a layer that keeps any block keeps at
    least `align` of them, where theirs may lose its last ones.
    """
    norm = CRITERIA[settings.criteria]
    return UnitMethod(settings, "BlockPrune", UnitShape(settings.block_size), norm, linear=True, align=settings.align)
