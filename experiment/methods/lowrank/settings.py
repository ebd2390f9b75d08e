"""Settings of the low-rank methods, without torch. ALDS+, Messi5 and others are presets of them in the registry."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from experiment.methods.settings import Positive

Folding = Annotated[int, Ge(0), Le(7)]
Foldings = Annotated[tuple[Folding, ...], MinLen(1)]
Patterns = Annotated[tuple[str, ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """Settings of all low-rank methods.

    Attributes:
        layers: name patterns (fnmatch) of the layers that may be decomposed; default: all. With a single layer, a grid
            of keep ratios is a grid of its ranks.
        ignore: name patterns (fnmatch) of layers that are kept whole.
    """

    layers: Patterns | None = None
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RankSettings(LayerSettings):
    """Settings of methods that choose ranks.

    Attributes:
        round_to: ranks are multiples of this, at least 1; many devices are faster with 8 or 16. Layers without such
            a rank are unchanged.
    """

    round_to: Positive = 1


@dataclass(frozen=True, kw_only=True)
class PCASettings(RankSettings):
    """The principal directions of the layers' responses.

    Attributes:
        allocation: what the ranks of all layers make best, with e_l the share of the variance of a layer's responses
            that is lost. `product`: the largest product of the shares that are kept, by variance per multiply-add;
            `sum`: the smallest sum of e_l (BALF); `minimax`: the smallest largest e_l; `uniform`: the smallest e_l for
            the same share of every layer's size (SVD-LLM).
        refit: fit the decoders, layer after layer, to what the original network computes on the calibration data.
    """

    allocation: Literal["product", "sum", "minimax", "uniform"] = "product"
    refit: bool = False


@dataclass(frozen=True, kw_only=True)
class SlicedSettings(RankSettings):
    """Settings of methods that slice and fold all layers in the same way.

    Attributes:
        groups: number of equal slices of the input channels, at least 1, each decomposed on its own. In a layer whose
            channels it does not divide, the nearest divisor is used.
        folding: how a kernel (filters, channels, height, width) becomes a matrix, 0 to 3: 0 is filters by the rest; 1
            and 2 are filters and one kernel axis by channels and the other axis; 3 is filters and both kernel axes by
            channels. Linear layers and 1x1 kernels always use 0, depthwise layers 1 instead of 0. Kernels of three
            axes have 0 to 7, one bit per axis that goes to the filters.
    """

    groups: Positive = 1
    folding: Folding = 0


@dataclass(frozen=True, kw_only=True)
class SVDSettings(SlicedSettings):
    """Truncated SVD of every layer, all ranks set by one threshold.

    Attributes:
        randomised_above: a layer whose slices have a shorter side longer than this, at least 1, gets at most this rank,
            and its singular values are computed by randomised SVD: seconds instead of minutes for thousands of
            features. Default: the exact SVD for all layers.
    """

    randomised_above: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class RSVDSettings(SlicedSettings):
    """The same fraction of the full rank in every layer, with factors from randomised SVD.

    Attributes:
        oversampling: columns of the sketch in addition to the rank, at least 1.
        power_iterations: multiplications by A A^T that sharpen the sketch, at least 0; 2 suffice unless the singular
            values decay very slowly.
    """

    oversampling: Positive = 10
    power_iterations: Annotated[int, Ge(0)] = 2


@dataclass(frozen=True, kw_only=True)
class LRankSettings(RankSettings):
    """The singular values of the whole network that are largest relative to what they cost.

    Attributes:
        cost: what a singular value costs: `flops` (multiply-adds) or `parameters`.
        price: of one multiply-add or parameter, in squared weights. Every layer gets the rank with the smallest sum of
            price times cost and half of the squared error, times mu in mode `lc`, where ranks grow with it. The keep
            ratio is only a limit then; with 1.0 the price alone decides. Default: the keep ratio decides.
        folding: how a kernel (filters, channels, height, width) becomes a matrix: 0 is filters by the rest (scheme 0);
            1 and 2 are filters and one kernel axis by channels and the other axis (scheme 1); 3 is filters and both
            kernel axes by channels.
        randomised_above: layers with a shorter side longer than this get at most this rank, by randomised SVD.
    """

    cost: Literal["flops", "parameters"] = "flops"
    price: Annotated[float, Gt(0)] | None = None
    folding: Folding = 0
    randomised_above: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class SelectorSettings(RankSettings):
    """Settings of methods that also choose the number of groups and the folding of every layer.

    Attributes:
        foldings: the foldings to choose from, layer by layer: how a kernel (filters, channels, height, width) becomes a
            matrix. 0 is filters by the rest; 1 and 2 are filters and one kernel axis by channels and the other axis; 3
            is filters and both kernel axes by channels. Kernels of three axes have 0 to 7, one bit per axis that goes
            to the filters.
        min_group_width: minimum input channels per group, at least 1. Encoders of many narrow groups cost few
            multiply-adds but run slowly: with 8 or 16, fewer multiply-adds also take less time.
    """

    foldings: Foldings = (0,)
    min_group_width: Positive = 1


@dataclass(frozen=True, kw_only=True)
class ALDSSettings(SelectorSettings):
    """Number of groups and rank of every layer, jointly minimising the largest relative error over the layers.

    Attributes:
        error: the relative error of a layer decomposed in k groups: `reference` (the largest of the groups' sigma_{j+1}
            over the layer's sigma_1, as in the paper's code), `exact` (operator norm of the residual over that of the
            weight) or `bound` (`reference` times sqrt(k), as in the paper's theorem).
        randomised_above: layers whose slices have a shorter side longer than this get at most this rank, by randomised
            SVD. Default: the exact SVD for all layers.
    """

    error: Literal["reference", "exact", "bound"] = "reference"
    randomised_above: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class ALDSKSettings(ALDSSettings):
    """The same share of every layer's size, and in each layer the number of groups with the smallest error.

    Attributes:
        error: the relative error of a layer decomposed in k groups: `reference` (the largest of the groups' sigma_{j+1}
            over the layer's sigma_1) or `bound` (`reference` times sqrt(k)).
    """

    error: Literal["reference", "bound"] = "reference"


@dataclass(frozen=True, kw_only=True)
class KLDSSettings(SelectorSettings):
    """Folding, number of groups and rank of every layer, jointly, by their effect on the network's output.

    Attributes:
        points: options per layer that are evaluated in the network, at least 2; the others are interpolated.
        images: calibration inputs for this evaluation, at least 1.
        refit: fit the decoders, layer after layer, to what the original network computes on the calibration data.
        allocation: what the options of all layers make smallest: the `sum` of the divergences that each causes alone,
            the largest one (`minimax`), or each within the same share of its layer's size (`uniform`).
    """

    allocation: Literal["sum", "minimax", "uniform"] = "sum"
    points: Annotated[int, Ge(2)] = 8
    images: Positive = 64
    refit: bool = True


@dataclass(frozen=True, kw_only=True)
class TuckerSettings(RankSettings):
    """Ranks of the input and the output channels of every convolution, chosen for all layers together.

    Attributes:
        allocation: what the ranks of all layers make best, with e_l the share of the squared norm of a layer's weight
            that is lost. `sum`: the smallest sum of e_l; `minimax`: the smallest largest e_l; `uniform`: the smallest
            e_l for the same share of every layer's size.
    """

    allocation: Literal["sum", "minimax", "uniform"] = "sum"


@dataclass(frozen=True, kw_only=True)
class MessiSettings(LayerSettings):
    """The same fraction of the full rank in every layer, in each of several subspaces that share the columns.

    Attributes:
        groups: number of subspaces, at least 1; it need not divide the channels.
        starts: random partitions that the search starts from, at least 1; the best outcome is kept.
        alternations: reassignments of the columns per start, at most; at least 1.
    """

    groups: Positive = 3
    starts: Positive = 5
    alternations: Positive = 5
