"""Whole residual blocks go, those of smallest filters first: networks of less depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from experiment.errors import CompressionError
from experiment.layers.build import build, write_whole
from experiment.layers.compressible import trace_layers
from experiment.layers.plan import Plan, State
from experiment.layers.residual_blocks import inside, residual_blocks
from experiment.measure import Count, count
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest, longest
from experiment.methods.filters.settings import BlocksSettings
from experiment.methods.layer_patterns import matching


@dataclass(frozen=True)
class BlockOrder:
    """The blocks that are left, in the order in which they go, with their scores, and all layers' names."""

    state: State
    order: Sequence[str]
    scores: Mapping[str, float]
    layers: Sequence[str]

    def plan(self, num_gone: int) -> tuple[Plan, Count]:
        """The plan without that many more blocks, and what the network then costs."""
        skipped = (*self.state.skipped, *self.order[:num_gone])
        plan = Plan(
            masks={name: mask for name, mask in self.state.masks.items() if not inside(name, skipped)},
            kept={name: sides for name, sides in self.state.kept.items() if not inside(name, skipped)},
            biases=tuple(name for name in self.state.biases if not inside(name, skipped)),
            skipped=skipped,
        )
        return plan, count(build(self.state.network, plan), self.state.example)


@dataclass(frozen=True)
class Blocks:
    """Depth pruning: y = x + f(x) becomes x, block by block, as few as the budget needs.

    A block's score is the mean of the l1 norms of its filters; the lowest go first. Blocks that change width or grid,
    and so have weights on their shortcut, stay (`experiment.layers.residual_blocks`).

    Source: the score of Li et al. 2017, https://arxiv.org/abs/1608.08710, for blocks; that residual networks bear to
    lose some: Veit et al. 2016, https://arxiv.org/abs/1605.06431.
    """

    settings: BlocksSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> BlockOrder:
        """The blocks and their scores.

        Raises: ConfigError: a pattern of `ignore` names no block. CompressionError: there are no blocks.
        """
        blocks = residual_blocks(state.network, state.example)
        if not blocks:
            raise CompressionError(
                "Blocks removes residual blocks whose shortcut is the identity, modules that compute x + f(x), and "
                "this network has none. Use a method that removes filters, such as FT."
            )
        ignored = matching(self.settings.ignore, blocks, "Blocks", "block")
        layers = trace_layers(state.network, state.example)
        free = [name for name in blocks if name not in ignored and name not in state.skipped]
        scores = {name: _score(state.network, [n for n in layers if inside(n, [name])]) for name in free}
        return BlockOrder(state, sorted(free, key=scores.__getitem__), scores, list(layers))

    def plan(self, analysis: BlockOrder, budget: Budget) -> Plan:
        """The plan that removes the fewest blocks, in their order, so that the rest fits.

        Raises: InfeasibleBudget: without all blocks the network is still too large.
        """
        most = len(analysis.order)

        def size(num_gone: int) -> int:
            counted = analysis.plan(num_gone)[1]
            return counted.parameters if budget.quantity == "parameters" else counted.flops_unmasked

        check_smallest(size(most), budget)
        num_left = longest(most, lambda left: size(most - left) <= budget.limit)
        plan, counted = analysis.plan(most - num_left)
        details = {name: {"kept": not inside(name, plan.skipped)} for name in analysis.layers}
        return Plan(
            masks=plan.masks, kept=plan.kept, biases=plan.biases, skipped=plan.skipped,
            parameters=counted.parameters, details=details,
        )  # fmt: skip

    def fill(self, built: nn.Module, state: State, analysis: BlockOrder, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        write_whole(built, state.network, plan)


def _score(network: nn.Module, layers: Sequence[str]) -> float:
    """The mean over all filters of these layers of their l1 norm."""
    weights = {name: network.get_submodule(name).get_parameter("weight").detach() for name in layers}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise CompressionError(f"{name}: the weights must be finite. Got NaN or infinity: did training diverge?")
    return float(torch.cat([weight.flatten(1).abs().double().sum(1).cpu() for weight in weights.values()]).mean())
