"""Depth pruning: removes whole residual blocks, those with the smallest filters first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from experiment.errors import CompressionError
from experiment.layers.build import build, write_whole
from experiment.layers.compressible import trace_layers
from experiment.layers.plan import Plan, State
from experiment.layers.residual_blocks import block_branches, inside, residual_blocks
from experiment.measure import Count, count
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest, longest
from experiment.methods.filters.base import finite_parameter
from experiment.methods.filters.settings import BlocksSettings
from experiment.methods.layer_patterns import matching


@dataclass(frozen=True)
class BlockOrder:
    """The analysis: the removable blocks and branches in the order of removal, with scores, and all layers' names.

    Attributes:
        branches: block -> its branches, which go apart -> their form, as in `Plan.branches`.
    """

    state: State
    order: Sequence[str]
    scores: Mapping[str, float]
    layers: Sequence[str]
    branches: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def plan(self, num_gone: int) -> tuple[Plan, Count]:
        """The plan that removes this many more blocks, and the cost of the network."""
        gone = (*self.state.skipped, *self.order[:num_gone])
        whole = [block for block, parts in self.branches.items() if set(gone).issuperset(parts)]  # with its norms
        skipped = (*(name for name in gone if not inside(name, whole)), *whole)
        forms = dict(self.state.branches) | {n: form for parts in self.branches.values() for n, form in parts.items()}
        plan = Plan(
            masks={name: mask for name, mask in self.state.masks.items() if not inside(name, skipped)},
            kept={name: sides for name, sides in self.state.kept.items() if not inside(name, skipped)},
            biases=tuple(name for name in self.state.biases if not inside(name, skipped)),
            skipped=skipped,
            branches={name: form for name, form in forms.items() if name in skipped},
        )
        return plan, count(build(self.state.network, plan), self.state.example)


@dataclass(frozen=True)
class Blocks:
    """Depth pruning: y = x + f(x) becomes x, for as few blocks as the budget requires.

    Where a block has several branches, x + f(x) + g(x + f(x)), such as attention and feed-forward, they go apart. A
    block's score is the mean of the l1 norms of its filters; those of lowest score are removed first. Blocks that
    change width or grid, and so have weights on their shortcut, are kept (`experiment.layers.residual_blocks`).

    Source: the score of Li et al. 2017, https://arxiv.org/abs/1608.08710, applied to blocks; Veit et al. 2016,
    https://arxiv.org/abs/1605.06431, show that residual networks tolerate the removal of blocks.
    """

    settings: BlocksSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> BlockOrder:
        """Find and score the blocks.

        Raises: ConfigError: a pattern of `ignore` names no block. CompressionError: there are no blocks.
        """
        blocks = residual_blocks(state.network, state.example)
        if not blocks:
            raise CompressionError(
                "Blocks removes residual blocks with an identity shortcut, modules that compute x + f(x). This network "
                "has none. Use a method that removes filters, such as FT."
            )
        branches = block_branches(state.network, state.example, blocks)
        parts = [part for block in blocks for part in branches.get(block, [block])]
        ignored = matching(self.settings.ignore, list(dict.fromkeys([*blocks, *parts])), "Blocks", "block")
        layers = trace_layers(state.network, state.example)
        free = [name for name in parts if not inside(name, {*ignored, *state.skipped})]
        scores = {name: _score(state.network, [n for n in layers if inside(n, [name])]) for name in free}
        return BlockOrder(state, sorted(free, key=scores.__getitem__), scores, list(layers), branches)

    def plan(self, analysis: BlockOrder, budget: Budget) -> Plan:
        """Remove the fewest blocks, in order, so that the rest fits.

        Raises: InfeasibleBudget: the network without all these blocks is still too large.
        """
        most = len(analysis.order)

        def size(num_gone: int) -> int:
            counted = analysis.plan(num_gone)[1]
            return counted.parameters if budget.quantity == "parameters" else counted.flops_unmasked

        check_smallest(size(most), budget)
        num_left = longest(most, lambda left: size(most - left) <= budget.limit)
        plan, counted = analysis.plan(most - num_left)
        details = {name: {"kept": not inside(name, plan.skipped)} for name in analysis.layers}
        return replace(plan, parameters=counted.parameters, details=details)

    def fill(self, built: nn.Module, state: State, analysis: BlockOrder, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        write_whole(built, state.network, plan)


def _score(network: nn.Module, layers: Sequence[str]) -> float:
    """The mean l1 norm of all filters of these layers."""
    return float(torch.cat([finite_parameter(network, name).flatten(1).abs().sum(1) for name in layers]).mean())
