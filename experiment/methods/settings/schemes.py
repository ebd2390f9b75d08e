"""The settings of Condensa's schemes, whose own density decides the size where it is given, and of their composition.

What they share:

    density: share of the units (weights, blocks, neurons, filters) of all eligible layers of the original network to
        keep, int(density * number) of them, whatever the keep ratio; default: as many as the keep ratio allows.
    ignore: name patterns (fnmatch) of layers that stay whole and are not counted.
    layers: name pattern -> {density: ...}, for layers that keep a density of their own, each on its own; the others
        share `density`. A layer that two patterns name is an error.
    criteria: the worth of a unit, from the magnitudes of its weights: `l2norm` (the root of the sum of squares), `max`,
        `min`, `mean` or `sum`.
    align: numbers of units that a layer keeps are multiples of this, rounded down.

Source: Joseph et al. 2020, A Programmable Approach to Neural Network Compression, https://arxiv.org/abs/1911.02497
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

Positive = Annotated[int, Ge(1)]
Density = Annotated[float, Gt(0), Le(1)]
Criteria = Literal["l2norm", "max", "min", "mean", "sum"]
Fold = Literal["none", "constant", "mean"]


@dataclass(frozen=True)
class LayerDensity:
    """The share of its units that a layer keeps."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    density: Density


class OwnDensity:
    """Settings with a `density`, which decides the size where it is given; else the keep ratio does."""

    density: Density | None

    @property
    def fixed_size(self) -> bool:
        """Whether no keep ratio is needed."""
        return self.density is not None


@dataclass(frozen=True)
class PruneSettings(OwnDensity):
    """The weights of largest magnitude in the whole network stay."""

    density: Density | None = None
    ignore: tuple[str, ...] = ()
    layers: Mapping[str, LayerDensity] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockPruneSettings(OwnDensity):
    """The blocks of linear layers' weights that are worth most stay.

    Attributes:
        block_size: rows and columns of a block; both must divide those of every layer that is not ignored.
    """

    block_size: tuple[Positive, Positive]
    density: Density | None = None
    criteria: Criteria = "l2norm"
    align: Positive = 1
    ignore: tuple[str, ...] = ()
    layers: Mapping[str, LayerDensity] = field(default_factory=dict)


@dataclass(frozen=True)
class StructurePruneSettings(OwnDensity):
    """The neurons of linear layers, the filters of convolutions, or both in one ranking, that are worth most stay.

    Attributes:
        prune_bias: whether the biases of those that go are gone with them; if not, what they still give with weights of
            zero is added to the layers that read them, which is what fold `constant` does.
        fold, refit: see `experiment.methods.settings.pruning`.
    """

    density: Density | None = None
    criteria: Criteria = "l2norm"
    align: Positive = 1
    prune_bias: bool = True
    ignore: tuple[str, ...] = ()
    layers: Mapping[str, LayerDensity] = field(default_factory=dict)
    fold: Fold = "none"
    refit: bool = False


@dataclass(frozen=True)
class Scheme:
    """One of several methods that are applied one after the other: its name and settings."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComposeSettings:
    """Several methods one after the other, each on what the one before has left.

    Attributes:
        schemes: the methods; one of them at most takes the keep ratio, the others have a size of their own.
    """

    schemes: tuple[Scheme, ...]
