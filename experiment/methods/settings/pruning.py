"""The settings of the methods that remove weights or filters, and of those that remove nothing."""

from __future__ import annotations

from dataclasses import dataclass


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
    """Filter thresholding: in every layer the same share of filters, those of largest l1 norm, stays.

    Attributes:
        fold: add what removed channels contributed (bias, BatchNorm shift) to the bias or BatchNorm of what follows.
        ignore: name patterns (fnmatch) of layers whose filters all stay; the layers that give the output always do.
    """

    fold: bool = False
    ignore: tuple[str, ...] = ()
