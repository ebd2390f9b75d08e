"""Condensa's structured schemes: neurons of linear layers, filters of convolutions, or both in one ranking.

Units are removed, not masked, together with their bias, their BatchNorm and the weights that read them.
"""

from dataclasses import dataclass, replace

from torch import nn

from experiment.errors import CompressionError
from experiment.layers.channels.channel_axes import CONVOLUTIONS, TRANSPOSED
from experiment.methods.base import Budget
from experiment.methods.budget_search import check_smallest
from experiment.methods.condensa_units import CRITERIA, aligned
from experiment.methods.filters.allocation import longest_prefix
from experiment.methods.filters.base import Channels, ChannelScores, FilterMethod, by_filter, makers
from experiment.methods.filters.settings import FilterSettings, Fold, StructurePruneSettings
from experiment.methods.layer_patterns import own_values

Kinds = tuple[type[nn.Module], ...]
NEURONS: Kinds = (nn.Linear, nn.Embedding)
FILTERS: Kinds = (*CONVOLUTIONS, *TRANSPOSED)


def neuron_prune(settings: StructurePruneSettings) -> FilterMethod:
    """Keeps the int(density * number) neurons of highest score in one ranking of all linear layers.

    The score is a norm of the neuron's row of weights (`criteria`), not normalised for its length. Layers that compute
    the network's output are exempt. Where sums tie layers together, a channel is several rows: its score is their mean,
    and it counts as that many.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: neurons are removed, not masked; the classifier is exempt without being named; a layer keeps at least one
    neuron, or `align` if it has that many (theirs may lose all); equal ones are kept in network order.
    """
    return _method(settings, "NeuronPrune", NEURONS)


def filter_prune(settings: StructurePruneSettings) -> FilterMethod:
    """Like NeuronPrune, for the filters of all convolutions; depthwise ones are tied to those they follow."""
    return _method(settings, "FilterPrune", FILTERS)


def structure_prune(settings: StructurePruneSettings) -> FilterMethod:
    """Like NeuronPrune, for neurons and filters in one ranking."""
    return _method(settings, "StructurePrune", (*NEURONS, *FILTERS))


def _method(settings: StructurePruneSettings, label: str, kinds: Kinds) -> FilterMethod:
    fold: Fold = "constant" if settings.fold == "none" and not settings.prune_bias else settings.fold
    filters = FilterSettings(
        fold=fold, ignore=settings.ignore, round_to=settings.align, refit=settings.refit, coupled=settings.coupled
    )
    norm = CRITERIA[settings.criteria]
    score = by_filter(lambda rows: norm(rows.abs()), average=True)
    return FilterMethod(filters, label, score, _CountUnits(settings, label, kinds).counts)


@dataclass(frozen=True)
class _CountUnits:
    """How many channels every group keeps: first groups with a density of their own, then all others in one ranking."""

    settings: StructurePruneSettings
    label: str
    kinds: Kinds

    def counts(self, filters: Channels, scores: ChannelScores, budget: Budget, round_to: int) -> list[int]:
        """The rule of `FilterMethod`.

        Raises: InfeasibleBudget: the density, or the smallest network, exceeds the budget. ConfigError: `layers`
            contradicts itself. CompressionError: nothing may be pruned, or the density keeps too little.
        """
        free = self._eligible(filters)
        own = self._own(filters, free)
        orders = filters.orders(scores)
        alive = [o[: own[g]] if g in own else o for g, o in enumerate(orders)]
        pooled = [may and g not in own for g, may in enumerate(free)]
        if self.settings.density is None:
            return longest_prefix(replace(filters, alive=alive, free=pooled), scores, budget, round_to)
        counts = self._of_density(filters, scores, alive, pooled)
        check_smallest(filters.size_of(orders, budget.quantity)(counts), budget)
        return counts

    def _eligible(self, filters: Channels) -> list[bool]:
        """Which groups may lose channels and consist only of the kinds of layers that this method prunes."""
        network = filters.state.network
        free = [
            may and all(isinstance(network.get_submodule(name), self.kinds) for name in group.producers)
            for group, may in zip(filters.groups, filters.free, strict=True)
        ]
        if not any(free):
            kinds = " or ".join(dict.fromkeys("filters" if kind in FILTERS else "neurons" for kind in self.kinds))
            raise CompressionError(
                f"{self.label}: no layer of this network has {kinds} that can be removed. Those that compute the "
                "network's output, and those that `ignore` matches, are kept."
            )
        return free

    def _own(self, filters: Channels, free: list[bool]) -> dict[int, int]:
        """The number of channels of the groups with a density of their own."""
        members = {n: g for g, group in enumerate(filters.groups) if free[g] for n in group.producers}
        densities = own_values(self.settings.layers, members, (), self.label)
        found: dict[int, float] = {}
        for name, own in densities.items():
            if found.setdefault(members[name], own.density) != own.density:
                tied = ", ".join(filters.groups[members[name]].producers)
                raise CompressionError(f"{self.label}.layers: {tied} are tied by a sum and must have the same density.")
        return {g: self._number(density, filters, g) for g, density in found.items()}

    def _number(self, density: float, filters: Channels, g: int) -> int:
        group, left = filters.groups[g], len(filters.alive[g])
        number = int(density * group.size)
        if not number:
            raise CompressionError(
                f"{self.label}.layers: density {density:g} keeps none of {group.size} of {group.name}."
            )
        return aligned(min(number, left), left, self.settings.align)

    def _of_density(
        self, filters: Channels, scores: ChannelScores, alive: list[tuple[int, ...]], pooled: list[bool]
    ) -> list[int]:
        """The best channel of every pooled group, then the best of all as long as their rows fit into the density."""
        density = self.settings.density
        assert density is not None
        # how many neurons and filters one channel of a group consists of
        rows = [sum(len(member.positions[0]) for member in makers(group)) for group in filters.groups]
        total = sum(group.size * rows[g] for g, group in enumerate(filters.groups) if pooled[g])
        least = sum(rows[g] for g in range(len(rows)) if pooled[g])
        left = int(density * total) - least
        if left < 0:
            raise CompressionError(
                f"{self.label}: density {density:g} keeps {int(density * total)} of {total} units, and every layer "
                f"keeps at least one: {least} in all. Expected a density of at least {least / total:.3g}."
            )
        counts = [min(1, len(order)) if pooled[g] else len(order) for g, order in enumerate(alive)]
        ranked = sorted((-float(scores[g][c]), g, k) for g, o in enumerate(alive) if pooled[g] for k, c in enumerate(o))
        for _, g, k in ranked:
            if k == 0:
                continue
            left -= rows[g]
            if left < 0:
                break
            counts[g] += 1
        align = self.settings.align
        return [aligned(n, len(alive[g]), align) if pooled[g] else n for g, n in enumerate(counts)]
