"""The settings of the low-rank methods.

Three of them mean the same everywhere:

    groups: into how many equal slices the input channels are split; the divisor of a layer's channels that is nearest.
    folding, foldings: which matrix a kernel becomes: 0 (filters by channels and kernel), 1 and 2 (filters and one
        kernel axis by the other one and channels), 3 (filters and kernel by channels). Where a layer's factors would
        be those of folding 0, as for linear layers and 1x1 kernels, it has only 0.
    round_to: the encoders' outputs, rank times groups, are multiples of this, which some devices compute faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

Positive = Annotated[int, Ge(1)]
Folding = Annotated[int, Ge(0), Le(3)]
Foldings = Annotated[tuple[Folding, ...], MinLen(1)]
Error = Literal["reference", "exact", "bound"]


@dataclass(frozen=True)
class SVDSettings:
    """The same share of the full rank in every layer."""

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1


@dataclass(frozen=True)
class SVDEnergySettings:
    """The same share of the squared singular values (`energy`) discarded in every layer."""

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1


@dataclass(frozen=True)
class SVDNuclearSettings:
    """The same share of the sum of singular values (the nuclear norm) discarded in every layer."""

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1


@dataclass(frozen=True)
class SVDErrorSettings:
    """The same relative operator-norm error in every layer."""

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1


@dataclass(frozen=True)
class LRankSettings:
    """The singular values of the whole network that are largest for the multiply-adds that they cost."""

    folding: Folding = 0
    round_to: Positive = 1


@dataclass(frozen=True)
class LRankScheme1Settings:
    """`LRankSettings` with kernels split into two of one axis each."""

    folding: Folding = 1
    round_to: Positive = 1


@dataclass(frozen=True)
class ALDSSettings:
    """Number of groups and rank of every layer together, minimising the largest relative error of all layers.

    Attributes:
        error: the relative error of a layer decomposed in k groups: `reference` (largest of the groups' sigma_{j+1}
            over the layer's sigma_1, what the paper's code computes), `exact` (operator norm of the residual over that
            of the weight) or `bound` (`reference` times sqrt(k), the paper's theorem).
        foldings: those to choose from, layer by layer.
    """

    error: Error = "reference"
    foldings: Foldings = (0,)
    round_to: Positive = 1


@dataclass(frozen=True)
class ALDSPlusSettings:
    """`ALDSSettings` with all foldings to choose from."""

    error: Error = "reference"
    foldings: Foldings = (0, 1, 2, 3)
    round_to: Positive = 1


@dataclass(frozen=True)
class ALDSKSettings:
    """The same share of every layer's budgeted quantity, and in each layer the number of groups of the smallest error.

    Attributes:
        error: `reference` or `bound`, see `ALDSSettings`.
    """

    error: Literal["reference", "bound"] = "reference"
    foldings: Foldings = (0,)
    round_to: Positive = 1


@dataclass(frozen=True)
class ALDSError3Settings:
    """The same relative error in every layer, with the same number of groups in all."""

    groups: Positive = 3
    folding: Folding = 0
    round_to: Positive = 1


@dataclass(frozen=True)
class ALDSSimple3Settings:
    """The same share of the full rank in every layer, with the same number of groups in all."""

    groups: Positive = 3
    folding: Folding = 0
    round_to: Positive = 1


@dataclass(frozen=True)
class ALDSSimple5Settings:
    """`ALDSSimple3Settings` with five groups."""

    groups: Positive = 5
    folding: Folding = 0
    round_to: Positive = 1
