"""The options of a layer: pairs of factors for every number of groups, folding and rank, or the layer itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiment.layers.compressible import LayerInfo
from experiment.layers.factored_layers import Slicing, flops, max_rank, parameters, split_kernel
from experiment.layers.forms import UNMASKED, Forms
from experiment.methods.base import Quantity
from experiment.methods.starting_state import Start

Integers = NDArray[np.int64]
MUCH_WORK = 5e11  # of a layer's numbers of groups: minutes; AlexNet's largest layer, 4096 x 9216, takes 4.0e11
LESS_WORK = 1.5e11


@dataclass(frozen=True)
class LayerOptions:
    """Pairs of factors that make a layer smaller and, last, the layer itself.

    Attributes:
        ranks, groups, foldings: (number of options,) each, slicing by slicing, with rising ranks within each; the last
            option, (0, 1, 0), is the layer itself.
        costs: parameters (bias included) and multiply-adds of every option.
        bias: whether the factors have a bias.
    """

    ranks: Integers
    groups: Integers
    foldings: Integers
    costs: Mapping[Quantity, Integers]
    bias: bool

    def slicings(self) -> list[Slicing]:
        """The slicings that have an option, in their order."""
        pairs = zip(self.groups[:-1].tolist(), self.foldings[:-1].tolist(), strict=True)
        return list(dict.fromkeys(pairs))

    def forms(self, alive: int) -> Forms:
        """The options as forms of the layer, of whose own mask so many weights are left."""
        kept = np.where(self.ranks == 0, alive, UNMASKED)
        return Forms(self.ranks, self.groups, self.foldings, kept, np.full(len(kept), ""), self.bias)

    def of(self, slicing: Slicing) -> Integers:
        """The indices of a slicing's options."""
        groups, folding = slicing
        return np.flatnonzero((self.groups == groups) & (self.foldings == folding) & (self.ranks > 0))


def find_options(
    start: Start,
    info: LayerInfo,
    all_slicings: Sequence[Slicing],
    round_to: int = 1,
    most: int | None = None,
    *,
    with_bias: bool = False,
) -> LayerOptions:
    """For every slicing all ranks that make the layer smaller and do not add multiply-adds; then the layer itself.

    Embeddings have no multiply-adds: their factors only make them smaller.

    Args:
        round_to: ranks are multiples of this.
        most: the largest rank; default: no limit.
        with_bias: give the factors a bias even if the layer has none.
    """
    dense, work = start.layer_cost(info.name, "parameters"), start.layer_cost(info.name, "flops")
    with_bias = info.bias or (with_bias and not info.tied)
    bias = (info.out_features if with_bias else 0) + sum(tied.out_features for tied in info.tied if tied.bias)
    choices: list[tuple[int, int, int, int, int]] = []
    for k, folding in all_slicings:
        size, multiplications = parameters(info, 1, k, folding), flops(info, 1, k, folding)
        top = min(max_rank(info, k, folding), (dense - bias - 1) // size)
        top = min(top, work // multiplications) if work and multiplications else top
        top = top if most is None else min(top, most)
        ranks = range(round_to, top + 1, round_to)
        choices += [(j, k, folding, j * size + bias, j * multiplications) for j in ranks]
    js, groups, foldings, sizes, works = np.array([*choices, (0, 1, 0, dense, work)], dtype=np.int64).T
    return LayerOptions(js, groups, foldings, {"parameters": sizes, "flops": works}, with_bias)


def slicings(info: LayerInfo, all_groups: Sequence[int], foldings: Sequence[int] = (0,)) -> list[Slicing]:
    """All distinct pairs of a number of groups and a folding; kernel axes that the layer does not have are ignored.

    The slices of a depthwise layer are kernels: where the encoder would own all of it, the decoder takes one axis.
    """
    distinct: dict[tuple[int, ...], int] = {}
    for folding in foldings:
        own = folding & (2 ** len(info.kernel) - 1)
        own = own or int(info.groups == info.out_features > 1 and len(info.kernel) > 1)
        encoder = split_kernel(info.kernel, own)[0]
        distinct.setdefault(encoder, 0 if encoder == info.kernel else own)
    return [(groups, folding) for folding in distinct.values() for groups in all_groups]


def group_numbers(info: LayerInfo, min_width: int = 1) -> list[int]:
    """1, and all numbers of groups with at least `min_width` input channels each.

    The eigenvalues of k Gram matrices of side S take about k S^3 multiply-adds. Of a layer whose numbers take more than
    MUCH_WORK together, 1 and those with the least work are kept, LESS_WORK together.
    """
    width = channels_to_split(info)
    work = {k: k * max_rank(info, k) ** 3 for k in divisors(width) if k == 1 or width // k >= min_width}
    if sum(work.values()) <= MUCH_WORK:
        return list(work)
    rising = [1, *sorted(set(work) - {1}, key=work.__getitem__)]
    total = np.cumsum([work[k] for k in rising], dtype=np.float64)
    return sorted(k for k, sum_k in zip(rising, total, strict=True) if k == 1 or sum_k <= LESS_WORK)


def channels_to_split(info: LayerInfo) -> int:
    """The input channels, in each of the layer's own groups, that can be split into groups; 1 for an embedding."""
    return 1 if info.kind == "embedding" else info.in_features // info.groups


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor closest to `wanted`; the larger one of two that are equally close."""
    return min(divisors(number), key=lambda d: (abs(d - wanted), -d))


def divisors(number: int) -> list[int]:
    """All divisors, in rising order."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})
