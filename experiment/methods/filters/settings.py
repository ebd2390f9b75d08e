"""Settings of the methods that remove filters, without torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from experiment.methods.settings import Positive, UnitSettings
from experiment.registry import NAMES_CODE

Fold = Literal["none", "constant", "mean"]
Allocation = Literal["uniform", "global", "isomorphic", "greedy"]


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Settings of methods that remove filters.

    Attributes:
        fold: what is added to the biases of the layers that read a removed channel, or to the running means of the
            BatchNorms behind them: `constant`, its output with a zero filter (bias, BatchNorm shift);
            `mean`, its mean on the calibration data; `none`, nothing.
        ignore: name patterns (fnmatch) of layers whose filters are kept. Those that compute the network's output always
            are.
        round_to: channel counts are multiples of this, at least 1; many devices are faster with 8 or 16. A head counts
            with all of its channels.
        refit: fit the layers that read removed channels, layer after layer, to what the network before compression
            computes on the calibration data; with `fold: mean`, their biases too.
        coupled: whether layers that are added, such as those at the end of residual blocks, only lose the same
            channels together. If false, each loses filters alone: it computes those that are left and puts them in
            their places in the sum; a layer that reads the sum loses a channel when all layers that feed it have. Then
            `fold` also keeps the constant (`constant`, `mean`) that a removed filter added to the sum: one parameter
            for each. Several layers that feed one channel rank it alike where only its readers count (PFP, ThiNet).
    """

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = False
    coupled: bool = True


@dataclass(frozen=True, kw_only=True)
class ThiNetSettings(FilterSettings):
    """The channels whose removal changes the outputs of the next layers most.

    Attributes:
        samples: outputs of each next layer that are compared, at least 1.
    """

    refit: bool = True
    samples: Positive = 1000


@dataclass(frozen=True, kw_only=True)
class RankedFilterSettings(FilterSettings):
    """Settings of methods in which the channels of all layers compete.

    Attributes:
        protected: the share of its channels that every group keeps at least, in [0, 1): no layer becomes a bottleneck.
    """

    protected: Annotated[float, Ge(0), Lt(1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class ScoredFilterSettings(RankedFilterSettings):
    """Settings of methods that give every channel a score.

    Attributes:
        allocation: which channels compete. `uniform`: those of a group, and every group keeps the same share; `global`:
            all; `isomorphic`: those of groups of the same kinds of layers, and all kinds keep the same share; `greedy`:
            those of a group, and every group keeps as few channels as change the network's predictions on the
            calibration data by no more than a common limit.
        reverse: keep the channels of smallest score: a control, which a useful score must beat by far.
    """

    allocation: Allocation = "uniform"
    reverse: bool = False

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings that have no effect beside the others, each with the reason."""
        if self.protected and self.allocation == "uniform":
            yield (
                "protected",
                "has no effect with allocation uniform, where no layer loses more than others. Remove it.",
            )


@dataclass(frozen=True, kw_only=True)
class GlobalFiltersSettings(ScoredFilterSettings):
    """The filters of largest norm in the whole network.

    Attributes:
        allocation: which channels compete; see `ScoredFilterSettings`.
        norm: `l2`, the root mean square of a filter's weights, or `l1`, their mean magnitude.
    """

    allocation: Allocation = "global"
    norm: Literal["l1", "l2"] = "l2"


@dataclass(frozen=True, kw_only=True)
class TorchPruningSettings(ScoredFilterSettings):
    """The channels of largest importance in the sense of the package torch-pruning.

    Attributes:
        importance: `package.module:name` of a class in torch_pruning.pruner.importance, such as GroupTaylorImportance
            or FPGMImportance, or of another one with the same interface. Those with Taylor or Hessian in their names,
            or with a method `accumulate_grad`, get the gradients of the cross entropy on the calibration data.
        kwargs: its arguments.
        allocation: which channels compete; see `ScoredFilterSettings`.
    """

    importance: str = field(
        default="torch_pruning.pruner.importance:GroupMagnitudeImportance", metadata={NAMES_CODE: True}
    )
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    allocation: Allocation = "global"


@dataclass(frozen=True, kw_only=True)
class PFPSettings(FilterSettings):
    """The channels with the largest relative contribution to the next layers' responses on calibration data.

    Attributes:
        positions: output positions of each calibration input and layer that are used, at least 1; default: all.
    """

    positions: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class StructurePruneSettings(UnitSettings):
    """The most important neurons of linear layers, filters of convolutions, or both in one ranking.

    Attributes:
        prune_bias: also remove the biases of removed units; if false, their output with zero weights is added to the
            layers that read them, as with `fold: constant`.
        fold: what is added to the biases of the layers that read a removed channel; see `FilterSettings`: `constant`,
            its output with a zero filter; `mean`, its mean on the calibration data; `none`, nothing.
        refit: fit the layers that read removed channels to what the network before compression computes on the
            calibration data.
        coupled: whether layers that are added only lose the same channels together; see `FilterSettings`.
    """

    prune_bias: bool = True
    fold: Fold = "none"
    refit: bool = False
    coupled: bool = True


@dataclass(frozen=True, kw_only=True)
class BlocksSettings:
    """The residual blocks with the largest filters.

    Attributes:
        ignore: name patterns (fnmatch) of blocks to keep.
    """

    ignore: tuple[str, ...] = ()
