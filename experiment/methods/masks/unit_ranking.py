"""One ranking of the weights, or blocks of weights, of several layers: the part that a density or a budget keeps.

Shape suffixes: N = rows, M = columns of a linear layer's weight; A, B = rows and columns of a block; U = units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiment.errors import CompressionError
from experiment.methods.base import Budget
from experiment.methods.budget_search import check_smallest, longest
from experiment.methods.condensa_units import Norm, aligned
from experiment.methods.masks.weight_ranking import alive_weights, unpruned_cost, weight_costs
from experiment.methods.starting_state import Start, live_weight


@dataclass(frozen=True)
class UnitShape:
    """The kind of units: blocks of a matrix or, without a size, single weights."""

    block: tuple[int, int] | None = None

    def rows(self, tensor: Tensor) -> Tensor:
        """The units of a tensor of the weight's shape, as rows: (U, weights per unit)."""
        if self.block is None:
            return tensor.reshape(-1, 1)
        (N, M), (A, B) = tensor.shape, self.block
        return tensor.reshape(N // A, A, M // B, B).transpose(1, 2).reshape(-1, A * B)

    def spread(self, units: Tensor, shape: torch.Size) -> Tensor:
        """A tensor of the weight's shape, from one value per unit."""
        if self.block is None:
            return units.reshape(shape)
        (N, M), (A, B) = shape, self.block
        return units.reshape(N // A, 1, M // B, 1).expand(N // A, A, M // B, B).reshape(N, M)

    @property
    def size(self) -> int:
        """Weights per unit."""
        return 1 if self.block is None else self.block[0] * self.block[1]


@dataclass(frozen=True)
class UnitRanking:
    """The units of some layers that have live weights, largest score first, equal ones in network order.

    Attributes:
        layers: their names in network order.
        total: number of units of these layers in the original network; densities are shares of it.
        owners: (live units,) the index of each unit's layer, in the order of the ranking.
        ranked: for each layer its units, largest score first.
        weights: for each layer (live units + 1,): how many live weights its first k units have.
        align: the number of units that a layer keeps is a multiple of this.
    """

    start: Start
    shape: UnitShape
    layers: tuple[str, ...]
    total: int
    owners: Tensor
    ranked: Sequence[Tensor]
    weights: Sequence[Tensor]
    align: int = 1

    def of_density(self, density: float) -> list[int]:
        """How many units every layer keeps of int(density * total), or of all live ones if these are fewer.

        Raises: CompressionError: that is none.
        """
        number = int(density * self.total)
        if self.total and not number:
            raise CompressionError(
                f"density {density:g} keeps none of the {self.total:,} units of {', '.join(self.layers)}. "
                f"Expected at least {1 / self.total:.3g}."
            )
        return self._counts(number)

    def of_budget(self, budget: Budget) -> list[int]:
        """How many units every layer keeps of the longest prefix of the ranking that fits.

        Raises: InfeasibleBudget: everything that is not ranked already exceeds the budget.
        """
        unpruned = self.cost([0] * len(self.layers), budget)
        check_smallest(unpruned, budget)
        left = budget.limit - unpruned
        most = longest(len(self.owners), lambda n: self._cost(self._counts(n), budget) <= left)
        return self._counts(most)

    def cost(self, counts: Sequence[int], budget: Budget) -> int:
        """The cost of the whole network if each layer keeps this number of units."""
        return unpruned_cost(self.start, budget, self.layers) + self._cost(counts, budget)

    def masks(self, counts: Sequence[int]) -> dict[str, Tensor]:
        """Layer name -> which of its weights are kept, in the shape of the weight in `Start.network`."""
        found = {}
        for name, ranked, count in zip(self.layers, self.ranked, counts, strict=True):
            alive = alive_weights(self.start, name)
            stays = torch.zeros(alive.numel() // self.shape.size, dtype=torch.bool, device=alive.device)
            stays[ranked[:count]] = True
            found[name] = self.shape.spread(stays, alive.shape) & alive
        return found

    def _cost(self, counts: Sequence[int], budget: Budget) -> int:
        costs = weight_costs(self.start, budget)
        kept = [int(weights[n]) for weights, n in zip(self.weights, counts, strict=True)]
        return sum(costs[name] * n for name, n in zip(self.layers, kept, strict=True))

    def _counts(self, number: int) -> list[int]:
        counts = torch.bincount(self.owners[:number], minlength=len(self.layers)).tolist()
        return [aligned(n, len(ranked), self.align) for n, ranked in zip(counts, self.ranked, strict=True)]


def rank_units(start: Start, layers: Sequence[str], shape: UnitShape, norm: Norm, align: int = 1) -> UnitRanking:
    """Rank all units of these layers that have live weights.

    Args:
        layers: names in network order; blocks must divide their weights.
        norm: the score of a unit from the magnitudes of its weights.
    """
    scores, owners, ranked, weights, total = [], [], [], [], 0
    for i, name in enumerate(layers):
        live = shape.rows(alive_weights(start, name))
        here = live.any(1).nonzero().flatten()
        score = norm(shape.rows(live_weight(start.network, start.masks, name).abs()))[here]
        order = torch.argsort(score, descending=True, stable=True)
        scores.append(score)
        owners.append(torch.full_like(here, i, dtype=torch.int32))
        ranked.append(here[order])
        weights.append(torch.cat([here.new_zeros(1), live.sum(1)[here[order]].cumsum(0)]))
        total += start.state.network.get_submodule(name).get_parameter("weight").numel() // shape.size
    if not layers:
        return UnitRanking(start, shape, (), 0, torch.zeros(0, dtype=torch.int32), (), (), align)
    order = torch.argsort(torch.cat(scores), descending=True, stable=True)
    return UnitRanking(start, shape, tuple(layers), total, torch.cat(owners)[order], ranked, weights, align)
