"""Settings of the methods that mask weights, without torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from experiment.methods.settings import DensitySettings, Positive, UnitSettings
from experiment.registry import NAMES_CODE

Allocation = Literal["global", "uniform", "erk", "lamp"]


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """The weights of largest score. What scores are compared, and what becomes of the weights, is the same for all.

    Attributes:
        allocation: how many weights each layer keeps. `global`: all weights of the network compete. `uniform`: the same
            share of every layer. `erk`: a layer's share is proportional to the sum of its weight's dimensions over
            their product, at most 1 (Evci et al. 2020). `lamp`: all compete by their squared score over the sum of
            those of their layer that are not smaller (Lee et al. 2021).
        within_filters: the share of its layer that is kept is the same in every filter (output channel), as in Wanda.
        pattern: [n, m]: of every m consecutive inputs of a filter keep the n of largest score. The size is fixed then.
            Layers whose inputs m does not divide are kept whole.
        refit: fit the weights that are kept, layer after layer, to what the original network computes on the
            calibration data (SparseGPT).
        reverse: keep the weights of smallest score: a control, which a useful score must beat by far.
        ignore: name patterns (fnmatch) of layers that are kept whole.
    """

    allocation: Allocation = "global"
    within_filters: bool = False
    pattern: tuple[Positive, Annotated[int, Ge(2)]] | None = None
    refit: bool = False
    reverse: bool = False
    ignore: tuple[str, ...] = ()

    @property
    def fixed_size(self) -> bool:
        """Whether the pattern decides the size, so that the keep ratio has no effect."""
        return self.pattern is not None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings that have no effect beside the others, or contradict them, each with the reason."""
        if self.within_filters and self.allocation == "lamp":
            yield "within_filters", "cannot be combined with allocation lamp, which compares scores across filters."
        if self.pattern is None:
            return
        if self.pattern[0] >= self.pattern[1]:
            yield "pattern", f"[n, m] must keep fewer weights than there are: n below m. Got {list(self.pattern)}."
        if self.allocation in ("erk", "lamp"):
            why = f"cannot be combined with allocation {self.allocation}: it keeps the same share of every layer."
            yield "pattern", f"{why} Use WT, or another method with a score of its own."


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
class SampledSiPPSettings:
    """Weights drawn by their relative contribution to the responses of their filters on calibration data.

    Attributes:
        positions: output positions of each calibration input and layer that are used, at least 1; default: all.
    """

    positions: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class SiPPSettings(SampledSiPPSettings, WeightSettings):
    """The weights with the largest relative contribution to the responses of their filters on calibration data."""


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
