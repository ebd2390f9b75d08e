"""The settings of the methods that remove weights or filters, and of those that remove nothing.

Three of them mean the same in all methods that remove filters:

    fold: what removed channels contributed to the layers that read them goes into those layers' biases, or the running
        means of the BatchNorms behind: `constant` is what a channel emits whose filter is zero (bias, BatchNorm shift),
        `mean` what it emitted on average on the calibration data, `none` neither.
    ignore: name patterns (fnmatch) of layers whose filters all stay; those that give the network's output always do.
    round_to: numbers of channels are multiples of this, which many devices compute faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

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
class FTSettings:
    """Filter thresholding: in every layer the same share of filters, those of largest l1 norm, stays."""

    fold: Fold = "none"
    ignore: tuple[str, ...] = ()
    round_to: Positive = 1
