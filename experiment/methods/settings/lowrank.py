"""The settings of the low-rank methods.

Five of them mean the same everywhere:

    groups: into how many equal slices the input channels are split; the divisor of a layer's channels that is nearest.
    folding, foldings: which matrix a kernel becomes: 0 (filters by channels and kernel), 1 and 2 (filters and one
        kernel axis by the other one and channels), 3 (filters and kernel by channels). Where a layer's factors would
        be those of folding 0, as for linear layers and 1x1 kernels, it has only 0.
    round_to: ranks are multiples of this; 8 or 16 run faster on many devices. Layers that have no such rank stay whole.
    min_group_width: a group has at least this many input channels. Encoders of many narrow groups, which cost few
        multiply-adds, run slowly: with 8 or 16, fewer multiply-adds also take less time.
    randomised_above: layers whose slices' smaller side is larger than this get only that many singular values, by
        randomised SVD, and no larger rank: seconds instead of minutes for thousands of features. Default: all of them.
    layers: name patterns (fnmatch) of the layers that may become factors; default: all. With one layer, a grid of keep
        ratios is a grid of its ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

Positive = Annotated[int, Ge(1)]
Folding = Annotated[int, Ge(0), Le(3)]
Foldings = Annotated[tuple[Folding, ...], MinLen(1)]
Layers = Annotated[tuple[str, ...], MinLen(1)] | None
Error = Literal["reference", "exact", "bound"]


@dataclass(frozen=True)
class SVDSettings:
    """The same share of the full rank in every layer."""

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class SVDEnergySettings:
    """The same share of the squared singular values (`energy`) discarded in every layer."""

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class SVDNuclearSettings:
    """The same share of the sum of singular values (the nuclear norm) discarded in every layer.

    It needs all singular values, and so has no `randomised_above`.
    """

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1
    layers: Layers = None


@dataclass(frozen=True)
class SVDErrorSettings:
    """The same relative operator-norm error in every layer."""

    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class LRankSettings:
    """The singular values of the whole network that are largest for the multiply-adds that they cost."""

    folding: Folding = 0
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class LRankScheme1Settings:
    """`LRankSettings` with kernels split into two of one axis each."""

    folding: Folding = 1
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


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
    min_group_width: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class ALDSPlusSettings:
    """`ALDSSettings` with all foldings to choose from."""

    error: Error = "reference"
    foldings: Foldings = (0, 1, 2, 3)
    round_to: Positive = 1
    min_group_width: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class ALDSKSettings:
    """The same share of every layer's budgeted quantity, and in each layer the number of groups of the smallest error.

    Attributes:
        error: `reference` or `bound`, see `ALDSSettings`.
    """

    error: Literal["reference", "bound"] = "reference"
    foldings: Foldings = (0,)
    round_to: Positive = 1
    min_group_width: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class ALDSError3Settings:
    """The same relative error in every layer, with the same number of groups in all."""

    groups: Positive = 3
    folding: Folding = 0
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class ALDSSimple3Settings:
    """The same share of the full rank in every layer, with the same number of groups in all."""

    groups: Positive = 3
    folding: Folding = 0
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class ALDSSimple5Settings:
    """`ALDSSimple3Settings` with five groups."""

    groups: Positive = 5
    folding: Folding = 0
    round_to: Positive = 1
    randomised_above: Positive | None = None
    layers: Layers = None


@dataclass(frozen=True)
class RSVDSettings:
    """The same share of the full rank in every layer, as `SVDSettings`, with factors from randomised SVD.

    Attributes:
        oversampling: columns of the sketch beyond the rank.
        power_iterations: multiplications by A A^T that sharpen it; 2 are enough unless singular values hardly fall.
    """

    oversampling: Positive = 10
    power_iterations: Annotated[int, Ge(0)] = 2
    groups: Positive = 1
    folding: Folding = 0
    round_to: Positive = 1
    layers: Layers = None


@dataclass(frozen=True)
class PCASettings:
    """The directions in which layers' responses vary most, for the multiply-adds that they cost."""

    round_to: Positive = 1
    layers: Layers = None


@dataclass(frozen=True)
class Messi3Settings:
    """The same share of the full rank in every layer, in each of several subspaces among which weights are shared out.

    Attributes:
        groups: how many subspaces; need not divide the channels.
        starts: random partitions that a search begins with; the best outcome is taken.
        alternations: how often a search reassigns the weights, at most.
    """

    groups: Positive = 3
    starts: Positive = 5
    alternations: Positive = 5
    layers: Layers = None


@dataclass(frozen=True)
class Messi5Settings:
    """`Messi3Settings` with five subspaces."""

    groups: Positive = 5
    starts: Positive = 5
    alternations: Positive = 5
    layers: Layers = None


@dataclass(frozen=True)
class KLDSSettings:
    """Folding, number of groups and rank of every layer together, by what they do to the network's output.

    Attributes:
        foldings: those to choose from, layer by layer.
        points: how many options of every layer are tried on the network; in between is interpolated.
        images: on how many of the calibration images they are tried.
        refit: fit the decoders, layer after layer, to what the dense network computes on the calibration data.
    """

    foldings: Foldings = (0,)
    points: Annotated[int, Ge(2)] = 8
    images: Positive = 64
    refit: bool = True
    round_to: Positive = 1
    min_group_width: Positive = 1
    layers: Layers = None
