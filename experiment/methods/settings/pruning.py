"""The settings of the methods that remove weights or filters, and of those that remove nothing.

Four of them mean the same in all methods that remove filters:

    fold: what removed channels contributed to the layers that read them goes into those layers' biases, or the running
        means of the BatchNorms behind: `constant` is what a channel emits whose filter is zero (bias, BatchNorm shift),
        `mean` what it emitted on average on the calibration data, `none` neither.
    refit: the layers that read removed channels get weights fitted, layer after layer, to what the layers of the
        network before compression answer on the calibration data; with fold `mean` together with the constant.
    ignore: name patterns (fnmatch) of layers whose filters all stay; those that give the network's output always do.
    round_to: numbers of channels are multiples of this, which many devices compute faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from experiment.registry import NAMES_CODE

Positive = Annotated[int, Ge(1)]
Fold = Literal["none", "constant", "mean"]


@dataclass(frozen=True)
class ReferenceSettings:
    """The uncompressed network."""


@dataclass(frozen=True)
class FakeSettings:
    """The uncompressed network, retrained like the compressed ones: the control for 'more epochs'."""


@dataclass(frozen=True)
class WTSettings:
    """Weight thresholding: the largest magnitudes of the whole network stay."""


@dataclass(frozen=True)
class WTLayerSettings:
    """`WTSettings` layer by layer: of every layer's weights the same share stays."""


@dataclass(frozen=True)
class RandomSettings:
    """Weights drawn at random from the whole network: what any score must beat."""


@dataclass(frozen=True)
class RandomLayerSettings:
    """`RandomSettings` layer by layer: of every layer's weights the same share stays."""


@dataclass(frozen=True)
class SNIPSettings:
    """The weights of the whole network that the loss depends on most, on calibration data with targets."""


@dataclass(frozen=True)
class UniformSettings:
    """The same share of every filter's weights, drawn with equal probabilities, with replacement, and reweighted."""


@dataclass(frozen=True)
class L1Settings:
    """`UniformSettings` with probabilities proportional to |w|."""


@dataclass(frozen=True)
class L2Settings:
    """`UniformSettings` with probabilities proportional to w^2."""


@dataclass(frozen=True)
class L1L2Settings:
    """`UniformSettings` with the mean of the probabilities of `L1Settings` and `L2Settings`."""


@dataclass(frozen=True)
class TorchPruneSettings:
    """The masks of a class of torch's own interface, the same share of every layer.

    Attributes:
        method: `package.module:name` of a subclass of torch.nn.utils.prune.BasePruningMethod.
        kwargs: its arguments but for `amount`, which the budget decides: the fraction of a layer that goes, a float.
    """

    method: str = field(default="torch.nn.utils.prune:L1Unstructured", metadata={NAMES_CODE: True})
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FTSettings:
    """Filter thresholding: in every layer the same share of filters, those of largest l1 norm, stays."""

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = False


@dataclass(frozen=True)
class SoftNetSettings:
    """As FT, by the l2 norm."""

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = False


@dataclass(frozen=True)
class UniformFiltersSettings:
    """As FT, any filters."""

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = False


@dataclass(frozen=True)
class ThiNetSettings:
    """As FT, those channels stay without which the layers that read them answer most differently.

    Attributes:
        samples: how many of each reading layer's answers are looked at.
    """

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = True
    samples: Positive = 1000


@dataclass(frozen=True)
class GlobalFiltersSettings:
    """The filters of largest norm in the whole network stay.

    Attributes:
        norm: `l2`, the root of a filter's mean squared weight, or `l1`, its mean absolute weight.
    """

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = False
    norm: Literal["l1", "l2"] = "l2"


@dataclass(frozen=True)
class BlocksSettings:
    """The residual blocks of largest filters stay.

    Attributes:
        ignore: name patterns (fnmatch) of blocks that stay.
    """

    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlimmingSettings:
    """The channels of the whole network stay that BatchNorm scales most."""

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = False


@dataclass(frozen=True)
class SiPPSettings:
    """The weights that matter most to what filters answer on calibration data; drawn at random in two variants.

    Attributes:
        positions: look at no more than so many positions of each sample in a layer; default: all.
    """

    positions: Positive | None = None


@dataclass(frozen=True)
class PFPSettings:
    """The channels that matter most to what the layers that read them answer on calibration data.

    Attributes:
        positions: as of `SiPPSettings`.
    """

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
    refit: bool = False
    positions: Positive | None = None
