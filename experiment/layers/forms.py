"""The forms that a layer may take, as arrays: factors, masked weights, fewer bits, or several of these."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
UNMASKED = -1


@dataclass(frozen=True)
class Forms:
    """Forms of one layer, one per element.

    Attributes:
        ranks, groups, foldings: (number,) each, of the layer's factors; rank 0 is the layer itself.
        kept: (number,), the weights that are not masked; UNMASKED without a mask, and for factors.
        dtypes: (number,) texts, int8 or int4 as in a plan; empty for the layer's own.
        bias: whether factors have a bias.
    """

    ranks: Integers
    groups: Integers
    foldings: Integers
    kept: Integers
    dtypes: NDArray[np.str_]
    bias: bool = False

    def __len__(self) -> int:
        return len(self.ranks)
