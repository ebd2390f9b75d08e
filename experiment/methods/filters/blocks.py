"""Depth pruning: removes whole residual blocks, those with the smallest filters first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from experiment.errors import CompressionError
from experiment.layers.build import build, write_whole
from experiment.layers.compressible import trace_layers
from experiment.layers.plan import Plan, State
from experiment.layers.residual_blocks import inside, residual_blocks
from experiment.layers.residual_branches import residual_branches
from experiment.measure import Count, count
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest, longest
from experiment.methods.filters.base import finite_parameter
from experiment.methods.filters.settings import BlocksSettings
from experiment.methods.layer_patterns import matching


@dataclass(frozen=True)
class BlockOrder:
    """The analysis: the removable parts in the order of removal, with scores, and all layers' names.

    Attributes:
        modules: part, a block or a branch -> what goes with a branch and its forms, as in `Plan.branches`.
        blocks: block -> its parts, which go apart.
    """

    state: State
    order: Sequence[str]
    scores: Mapping[str, float]
    layers: Sequence[str]
    modules: Mapping[str, Mapping[str, int]]
    blocks: Mapping[str, Sequence[str]]

    def plan(self, num_gone: int) -> tuple[Plan, Count]:
        """The plan that removes this many more parts, and the cost of the network."""
        more = (module for part in self.order[:num_gone] for module in self.modules[part] or [part])
        gone = (*self.state.skipped, *more)
        whole = [
            block
            for block, parts in self.blocks.items()
            if len(parts) > 1 and set(gone).issuperset(module for part in parts for module in self.modules[part])
        ]
        skipped = (*(name for name in gone if not inside(name, whole)), *whole)
        forms = dict(self.state.branches) | {name: form for own in self.modules.values() for name, form in own.items()}
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

    Where a block has several branches, x + f(x) + g(x + f(x)), such as attention and feed-forward, they go apart. So do
    branches whose sum something follows: LN(x + f(x)) of a post-norm transformer becomes LN(x). A part's score is the
    mean of the l1 norms of its filters; those of lowest score are removed first. Blocks that change width or grid, and
    so have weights on their shortcut, are kept (`experiment.layers.residual_blocks`, `residual_branches`).

    Source: the score of Li et al. 2017, https://arxiv.org/abs/1608.08710, applied to blocks; Veit et al. 2016,
    https://arxiv.org/abs/1605.06431, show that residual networks tolerate the removal of blocks.
    """

    settings: BlocksSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> BlockOrder:
        """Find and score the blocks.

        Raises: ConfigError: a pattern of `ignore` names no block. CompressionError: there are no blocks.
        """
        network, example = state.network, state.example
        layers, blocks = list(trace_layers(network, example)), residual_blocks(network, example)
        found = residual_branches(network, example)
        branches = {name: branch for name, branch in found.items() if not any(inside(b, branch) for b in blocks)}
        apart = {block: _parts_of(block, branches, layers) for block in blocks}
        alone = [name for name, branch in branches.items() if not any(inside(module, blocks) for module in branch)]
        modules = {part: branches.get(part, {}) for part in [*(p for parts in apart.values() for p in parts), *alone]}
        if not modules:
            raise CompressionError(
                "Blocks removes residual blocks with an identity shortcut, modules that compute x + f(x), and branches "
                "f in such sums. This network has none. Use a method that removes filters, such as FT."
            )
        ignored = matching(self.settings.ignore, list(dict.fromkeys([*blocks, *modules])), "Blocks", "block")
        free = [name for name in modules if not inside(name, {*ignored, *state.skipped})]
        inner = {name: [layer for layer in layers if inside(layer, modules[name] or [name])] for name in free}
        scores = {name: _score(network, own) for name, own in inner.items() if own}
        return BlockOrder(state, sorted(scores, key=scores.__getitem__), scores, layers, modules, apart)

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


def _parts_of(block: str, branches: Mapping[str, Mapping[str, int]], layers: Sequence[str]) -> list[str]:
    """The branches that make up a block, or the block itself if these are not several, with all its layers."""
    inner = [name for name, branch in branches.items() if all(inside(module, [block]) for module in branch)]
    apart = [module for name in inner for module in branches[name]]
    complete = all(inside(layer, apart) for layer in layers if inside(layer, [block]))
    return inner if len(inner) > 1 and complete else [block]


def _score(network: nn.Module, layers: Sequence[str]) -> float:
    """The mean l1 norm of all filters of these layers."""
    return float(torch.cat([finite_parameter(network, name).flatten(1).abs().sum(1) for name in layers]).mean())
