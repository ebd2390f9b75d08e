"""The images that data-dependent compression methods look at: how many, and which.

Source: Baykal et al., Provable Filter Pruning, 2019, https://arxiv.org/abs/1911.07412 (size of the sample S).
"""

import math
from collections.abc import Sequence

import torch

from experiment.datasets.image_data import Batch, Images
from experiment.random_streams import Part, generator

SIZE_FACTOR = 3  # C of the formula


def calibration_size(etas: Sequence[int], num_valid: int, delta_s: float = 1e-16) -> int:
    """|S| = min(ceil(C ln(8 eta_max / delta')), ceil(|V| / 2)) with delta' = delta_s / sum(eta).

    Args:
        etas: eta_l, output scalars of layer l for one sample, of every compressible layer.
        num_valid: |V|, images in the validation part.
        delta_s: allowed probability that the sample misleads, in (0, 1).
    """
    etas = etas or (1,)  # no compressible layer, as where all convolutions are grouped
    delta = delta_s / sum(etas)
    wanted = math.ceil(SIZE_FACTOR * math.log(8 * max(etas) / delta))
    return min(wanted, math.ceil(num_valid / 2))


def calibration(valid: Images, n: int, stream: tuple[Part, ...]) -> Batch:
    """`n` images of the validation part, without repetition, chosen by the stream alone: the same for every method."""
    order = torch.randperm(len(valid), generator=generator(*stream, "calibration"))
    return valid.take(order[:n])
