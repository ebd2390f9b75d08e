"""Weights, or blocks of them, of several layers in one ranking: how many a density or a budget keeps, and the masks.

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
from experiment.methods.masks.weight_ranking import alive_weights, unmasked_cost
from experiment.methods.starting_state import Start, live_weight


@dataclass(frozen=True)
class UnitShape:
    """How a weight is cut into units: blocks of a matrix, or, without a size, single weights."""

    block: tuple[int, int] | None = None

    def rows(self, tensor: Tensor) -> Tensor:
        """(U, weights of a unit), from a tensor of the weight's shape."""
        if self.block is None:
            return tensor.reshape(-1, 1)
        (N, M), (A, B) = tensor.shape, self.block
        return tensor.reshape(N // A, A, M // B, B).transpose(1, 2).reshape(-1, A * B)

    def spread(self, units: Tensor, shape: torch.Size) -> Tensor:
        """A tensor of the weight's shape, from one value a unit."""
        if self.block is None:
            return units.reshape(shape)
        (N, M), (A, B) = shape, self.block
        return units.reshape(N // A, 1, M // B, 1).expand(N // A, A, M // B, B).reshape(N, M)

    @property
    def size(self) -> int:
        """Weights of a unit."""
        return 1 if self.block is None else self.block[0] * self.block[1]


@dataclass(frozen=True)
class UnitRanking:
    """The units of some layers that are left, the most worth first; equal ones stand in network order.

    Attributes:
        layers: their names in network order.
        total: units of these layers in the original network, which densities are shares of.
        owners: (units left,) of each unit the index of its layer, in the ranking.
        ranked: of every layer its units, the most worth first.
        weights: of every layer (units left + 1,): how many weights its k first units have.
        align: numbers of units that a layer keeps are multiples of this.
    """

    start: Start
    units: UnitShape
    layers: tuple[str, ...]
    total: int
    owners: Tensor
    ranked: Sequence[Tensor]
    weights: Sequence[Tensor]
    align: int = 1

    def of_density(self, density: float) -> list[int]:
        """How many units every layer keeps of int(density * total), or of all that are left if these are fewer.

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
        """How many units every layer keeps of the longest beginning of the ranking that fits.

        Raises: InfeasibleBudget: all that is not in the pool is already more.
        """
        never_pruned = self.cost([0] * len(self.layers), budget)
        check_smallest(never_pruned, budget)
        left = budget.limit - never_pruned
        most = longest(len(self.owners), lambda n: self._cost(self._counts(n), budget) <= left)
        return self._counts(most)

    def cost(self, counts: Sequence[int], budget: Budget) -> int:
        """What the whole network costs when the layers keep so many units each."""
        own = {name: self.start.layers[name] for name in self.layers}
        return unmasked_cost(self.start, budget, own) + self._cost(counts, budget)

    def _cost(self, counts: Sequence[int], budget: Budget) -> int:
        infos = (self.start.layers[name] for name in self.layers)
        positions = [info.positions if budget.quantity == "flops" else 1 for info in infos]
        kept = [int(weights[n]) for weights, n in zip(self.weights, counts, strict=True)]
        return sum(p * n for p, n in zip(positions, kept, strict=True))

    def masks(self, counts: Sequence[int]) -> dict[str, Tensor]:
        """Layer name -> which of its weights stay, in the shape of the weight in `Start.network`."""
        found = {}
        for name, ranked, count in zip(self.layers, self.ranked, counts, strict=True):
            alive = alive_weights(self.start, name)
            stays = torch.zeros(alive.numel() // self.units.size, dtype=torch.bool, device=alive.device)
            stays[ranked[:count]] = True
            found[name] = self.units.spread(stays, alive.shape) & alive
        return found

    def _counts(self, number: int) -> list[int]:
        counts = torch.bincount(self.owners[:number], minlength=len(self.layers)).tolist()
        return [aligned(n, len(ranked), self.align) for n, ranked in zip(counts, self.ranked, strict=True)]


def rank_units(start: Start, layers: Sequence[str], units: UnitShape, norm: Norm, align: int = 1) -> UnitRanking:
    """The ranking of all units of these layers that have a weight left.

    Args:
        layers: names in network order; with blocks, of layers whose weights these divide.
        norm: what a unit is worth, by the magnitudes of its weights.
    """
    scores, owners, ranked, weights, total = [], [], [], [], 0
    for i, name in enumerate(layers):
        live = units.rows(alive_weights(start, name))
        here = live.any(1).nonzero().flatten()
        score = norm(units.rows(live_weight(start.network, start.masks, name).abs()))[here]
        order = torch.argsort(score, descending=True, stable=True)
        scores.append(score)
        owners.append(torch.full_like(here, i, dtype=torch.int32))
        ranked.append(here[order])
        weights.append(torch.cat([here.new_zeros(1), live.sum(1)[here[order]].cumsum(0)]))
        total += start.state.network.get_submodule(name).get_parameter("weight").numel() // units.size
    if not layers:
        return UnitRanking(start, units, (), 0, torch.zeros(0, dtype=torch.int32), (), (), align)
    order = torch.argsort(torch.cat(scores), descending=True, stable=True)
    return UnitRanking(start, units, tuple(layers), total, torch.cat(owners)[order], ranked, weights, align)
