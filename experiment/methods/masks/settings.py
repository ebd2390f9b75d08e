"""Settings of the methods that mask weights, and of Condensa's schemes, of which some remove filters; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Le

from experiment.methods.settings import Positive
from experiment.registry import NAMES_CODE

Density = Annotated[float, Gt(0), Le(1)]
Criteria = Literal["l2norm", "max", "min", "mean", "sum"]


@dataclass(frozen=True)
class TorchPruneSettings:
    """The masks of a class of torch.nn.utils.prune, with the same share of weights in every layer.

    Attributes:
        method: `package.module:name` of a subclass of torch.nn.utils.prune.BasePruningMethod.
        kwargs: its arguments except `amount`, the fraction of a layer to remove, which the keep ratio determines.
    """

    method: str = field(default="torch.nn.utils.prune:L1Unstructured", metadata={NAMES_CODE: True})
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SiPPSettings:
    """The weights with the largest relative contribution to the responses of their filters on calibration data.

    Attributes:
        positions: output positions of each calibration input and layer that are used, at least 1; default: all.
    """

    positions: Positive | None = None


@dataclass(frozen=True)
class LayerDensity:
    """The density of one layer.

    Attributes:
        density: share of the layer's units to keep, in (0, 1].
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    density: Density


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
    """What Condensa's schemes have. Their units are weights, blocks, neurons or filters.

    Source: Joseph et al. 2020, A Programmable Approach to Neural Network Compression, https://arxiv.org/abs/1911.02497

    Attributes:
        density: share of the units of all layers of the original network to keep, in (0, 1]: int(density * number) of
            them, whatever the keep ratio. Default: as many as the keep ratio allows.
        ignore: name patterns (fnmatch) of layers that stay whole and do not count.
        layers: name pattern (fnmatch) -> {density: ...}, for layers with a density of their own; the others share
            `density`. Two patterns may not match the same layer.
    """

    density: Density | None = None
    ignore: tuple[str, ...] = ()
    layers: Mapping[str, LayerDensity] = field(default_factory=dict)

    @property
    def fixed_size(self) -> bool:
        """Whether the density decides the size, so that the keep ratio has no effect."""
        return self.density is not None


@dataclass(frozen=True, kw_only=True)
class PruneSettings(DensitySettings):
    """The weights of largest magnitude in the whole network."""


@dataclass(frozen=True, kw_only=True)
class UnitSettings(DensitySettings):
    """What Condensa's schemes have whose units are several weights.

    Attributes:
        criteria: the importance of a unit from the magnitudes of its weights: `l2norm` (the root of the sum of
            squares), `max`, `min`, `mean` or `sum`.
        align: the number of units that a layer keeps is a multiple of this, at least 1, rounded down.
    """

    criteria: Criteria = "l2norm"
    align: Positive = 1


@dataclass(frozen=True, kw_only=True)
class BlockPruneSettings(UnitSettings):
    """The most important blocks of the linear layers' weights.

    Attributes:
        block_size: rows and columns of a block, at least 1; they must divide those of every layer that is not ignored.
    """

    block_size: tuple[Positive, Positive]
