"""Rankings of the weights, or blocks of weights, of some parameters: the part that a density or a budget keeps.

Shape suffixes: N = rows, M = columns of a linear layer's weight; A, B = rows and columns of a block; U = units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from experiment.errors import CompressionError
from experiment.layers.read_parameters import shown
from experiment.methods.base import Budget
from experiment.methods.budget_search import check_smallest, longest
from experiment.methods.condensa_units import Norm, aligned
from experiment.methods.masks.selection import elementwise
from experiment.methods.masks.weight_ranking import WeightRanking, rank_weights, unpruned_cost, weight_costs
from experiment.methods.starting_state import Start


class UnitRanking(Protocol):
    """The units of some parameters that have live weights, largest score first, equal ones in network order."""

    @property
    def start(self) -> Start: ...

    def of_density(self, density: float) -> dict[str, Tensor]:
        """Parameter name -> which elements are among the first int(density * number) units of the original network.

        Raises: CompressionError: that is none.
        """

    def of_budget(self, budget: Budget) -> dict[str, Tensor]:
        """Parameter name -> which elements are in the longest prefix of the ranking that fits.

        Raises: InfeasibleBudget: everything that is not ranked already exceeds the budget.
        """


@dataclass(frozen=True)
class SingleWeights:
    """Units of one weight, by magnitude."""

    start: Start
    ranking: WeightRanking

    def of_density(self, density: float) -> dict[str, Tensor]:
        parts = self.ranking.parts
        total = sum(self.start.state.network.get_parameter(name).numel() for name in parts)
        return self.ranking.of_number(_number(density, total, list(parts)))

    def of_budget(self, budget: Budget) -> dict[str, Tensor]:
        return self.ranking.of_budget(budget)


@dataclass(frozen=True)
class Blocks:
    """Blocks of matrices.

    Attributes:
        size: rows and columns of a block.
        parameters: their names in network order.
        total: number of blocks in the original network.
        owners: (live blocks,) the index of each block's parameter, in the order of the ranking.
        ranked: for each parameter its blocks, largest score first.
        weights: for each parameter (live blocks + 1,): how many live weights its first k blocks have.
        align: the number of blocks that a parameter keeps is a multiple of this.
    """

    start: Start
    size: tuple[int, int]
    parameters: tuple[str, ...]
    total: int
    owners: Tensor
    ranked: Sequence[Tensor]
    weights: Sequence[Tensor]
    align: int

    def of_density(self, density: float) -> dict[str, Tensor]:
        return self._masks(self._counts(_number(density, self.total, self.parameters)))

    def of_budget(self, budget: Budget) -> dict[str, Tensor]:
        unpruned = unpruned_cost(self.start, budget, self.parameters)
        check_smallest(unpruned, budget)
        left = budget.limit - unpruned
        most = longest(len(self.owners), lambda n: self._cost(self._counts(n), budget) <= left)
        return self._masks(self._counts(most))

    def _masks(self, counts: Sequence[int]) -> dict[str, Tensor]:
        found = {}
        for name, ranked, count in zip(self.parameters, self.ranked, counts, strict=True):
            alive = self.start.alive(name)
            (N, M), (A, B) = alive.shape, self.size
            stays = torch.zeros(N // A * (M // B), dtype=torch.bool, device=alive.device)
            stays[ranked[:count]] = True
            found[name] = stays.reshape(N // A, 1, M // B, 1).expand(N // A, A, M // B, B).reshape(N, M) & alive
        return found

    def _cost(self, counts: Sequence[int], budget: Budget) -> int:
        costs = weight_costs(self.start, budget)
        kept = [int(weights[n]) for weights, n in zip(self.weights, counts, strict=True)]
        return sum(costs[name] * n for name, n in zip(self.parameters, kept, strict=True))

    def _counts(self, number: int) -> list[int]:
        counts = torch.bincount(self.owners[:number], minlength=len(self.parameters)).tolist()
        return [aligned(n, len(ranked), self.align) for n, ranked in zip(counts, self.ranked, strict=True)]


def rank_single(start: Start, parameters: Sequence[str]) -> SingleWeights:
    """Rank all live weights of these parameters by magnitude."""
    found = {name: start.network.get_parameter(name) for name in parameters}
    scores = {name: elementwise(weight, torch.abs) for name, weight in found.items()}
    return SingleWeights(start, rank_weights(start, scores, parameters))


def rank_blocks(start: Start, parameters: Sequence[str], size: tuple[int, int], norm: Norm, align: int) -> Blocks:
    """Rank all blocks of these parameters that have live weights.

    Args:
        parameters: names in network order; blocks must divide them.
        norm: the score of a block from the magnitudes of its weights.
    """
    scores, owners, ranked, weights, total = [], [], [], [], 0
    for i, name in enumerate(parameters):
        live = _rows(start.alive(name), size)
        here = live.any(1).nonzero().flatten()
        score = norm(_rows(start.live(name).abs(), size))[here]
        order = torch.argsort(score, descending=True, stable=True)
        scores.append(score)
        owners.append(torch.full_like(here, i, dtype=torch.int32))
        ranked.append(here[order])
        weights.append(torch.cat([here.new_zeros(1), live.sum(1)[here[order]].cumsum(0)]))
        total += start.state.network.get_parameter(name).numel() // (size[0] * size[1])
    if not parameters:
        return Blocks(start, size, (), 0, torch.zeros(0, dtype=torch.int32), (), (), align)
    order = torch.argsort(torch.cat(scores), descending=True, stable=True)
    return Blocks(start, size, tuple(parameters), total, torch.cat(owners)[order], ranked, weights, align)


def cost_of(start: Start, masks: Mapping[str, Tensor], budget: Budget) -> int:
    """The cost of the whole network if these are the live elements of the parameters that they mask."""
    costs = weight_costs(start, budget)
    return unpruned_cost(start, budget, masks) + sum(costs[n] * int(mask.sum()) for n, mask in masks.items())


def _rows(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """The blocks of a matrix as rows: (U, weights per block)."""
    (N, M), (A, B) = tensor.shape, size
    return tensor.reshape(N // A, A, M // B, B).transpose(1, 2).reshape(-1, A * B)


def _number(density: float, total: int, parameters: Sequence[str]) -> int:
    number = int(density * total)
    if total and not number:
        raise CompressionError(
            f"density {density:g} keeps none of the {total:,} units of {', '.join(map(shown, parameters))}. "
            f"Expected at least {1 / total:.3g}."
        )
    return number
