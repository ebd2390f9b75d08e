"""Settings of the methods that mask weights, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiment.methods.settings import DensitySettings, Positive, UnitSettings
from experiment.registry import NAMES_CODE


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


@dataclass(frozen=True, kw_only=True)
class PruneSettings(DensitySettings):
    """The weights of largest magnitude in the whole network."""


@dataclass(frozen=True, kw_only=True)
class BlockPruneSettings(UnitSettings):
    """The most important blocks of the linear layers' weights.

    Attributes:
        block_size: rows and columns of a block, at least 1; they must divide those of every layer that is not ignored.
    """

    block_size: tuple[Positive, Positive]
