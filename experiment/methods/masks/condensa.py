"""Condensa's schemes that mask: single weights of the whole network, or blocks of linear layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from experiment.errors import CompressionError
from experiment.layers.build import write_whole
from experiment.layers.plan import Plan, State
from experiment.layers.read_parameters import shown
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest
from experiment.methods.condensa_units import CRITERIA
from experiment.methods.layer_patterns import matching, own_values
from experiment.methods.masks.settings import BlockPruneSettings, PruneSettings
from experiment.methods.masks.unit_ranking import UnitRanking, cost_of, rank_blocks, rank_single
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
        rank: ranks the units of some parameters.
        block: rows and columns of a unit, for linear layers alone; None for single weights of all parameters.
    """

    settings: DensitySettings
    label: str
    rank: Callable[[Start, Sequence[str]], UnitRanking]
    block: tuple[int, int] | None = None

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> UnitRanking:
        """Rank all units except those of layers with a density of their own, which are pruned here.

        Raises: ConfigError: a pattern names no layer, or `layers` contradicts itself or `ignore`. CompressionError:
            there is no layer to prune, a density keeps nothing, or blocks do not divide a layer.
        """
        start, label = self._start_of(state), self.label
        known = {shown(parameter): parameter for parameter in start.weights}
        ignored = matching(self.settings.ignore, list(known), label)
        eligible = [name for name in known if name not in ignored]
        if not eligible:
            what = "linear layer" if self.block else "convolution, linear layer or other matrix"
            raise CompressionError(f"{label}: the network has no {what} to prune that `ignore` does not exclude.")
        self._check_blocks(start, eligible)
        own = own_values(self.settings.layers, list(known), ignored, label)
        masks: dict[str, torch.Tensor] = {}
        for name, value in own.items():
            masks |= self.rank(start, [known[name]]).of_density(value.density)
        if masks:
            start = self._start_of(replace(state, masks=plan_masked(start, masks).masks))
        return self.rank(start, [known[name] for name in eligible if name not in own])

    def plan(self, analysis: UnitRanking, budget: Budget) -> Plan:
        """Mask the units that the density or the budget does not keep.

        Raises: InfeasibleBudget: the density leaves more than the budget, or what is never pruned exceeds it.
            CompressionError: the density keeps nothing.
        """
        start = analysis.start
        if self.settings.density is not None:
            masks = analysis.of_density(self.settings.density)
            check_smallest(cost_of(start, masks, budget), budget)
            return plan_masked(start, masks)
        return plan_masked(start, {} if start.allows(budget) else analysis.of_budget(budget))

    def fill(self, built: nn.Module, state: State, analysis: UnitRanking, plan: Plan) -> None:
        """Write the state's weights into `built`, in place; masked ones become zero."""
        write_whole(built, state.network, plan)

    def _start_of(self, state: State) -> Start:
        start = start_of(state, masked=True)
        if self.block is None:
            return start
        linear = {name: info for name, info in start.layers.items() if info.kind == "linear"}
        return replace(start, layers=linear, weights={n: f for n, f in start.weights.items() if shown(n) in linear})

    def _check_blocks(self, start: Start, layers: list[str]) -> None:
        if self.block is None:
            return
        shapes = {name: tuple(start.network.get_submodule(name).get_parameter("weight").shape) for name in layers}
        wrong = [
            f"'{name}' {shape}"
            for name, shape in shapes.items()
            if any(side % size for side, size in zip(shape, self.block, strict=True))
        ]
        if wrong:
            raise CompressionError(
                f"{self.label}: block_size {self.block} must divide the weights of all layers. It does not divide "
                f"those of {', '.join(wrong)}. Choose another size, or exclude these layers with `ignore`."
            )


def prune(settings: PruneSettings) -> UnitMethod:
    """Global magnitude pruning: keeps the int(density * number) largest |w| of all eligible parameters.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: keeps exactly that number, ties in network order; a threshold would keep all ties.
    """
    return UnitMethod(settings, "Prune", rank_single)


def block_prune(settings: BlockPruneSettings) -> UnitMethod:
    """Like Prune, for blocks of linear layers' weights, scored by a norm of the magnitudes in each block.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: exactly int(density * number) blocks before rounding down to `align`; a layer that keeps any block keeps at
    least `align` of them, where theirs may lose its last ones.
    """
    block, norm = settings.block_size, CRITERIA[settings.criteria]
    rank = partial(rank_blocks, size=block, norm=norm, align=settings.align)
    return UnitMethod(settings, "BlockPrune", rank, block)
