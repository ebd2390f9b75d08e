"""The confusion matrix of class numbers, from which several metrics are made.

Shape suffix: K = classes. A matrix is (K, K + 1): rows are targets, columns predictions, the last of them answers that
are NaN.
"""

import math

import torch
from torch import Tensor


def confusion(outputs: Tensor, y: Tensor, ignored: int | None = None) -> Tensor:
    """The confusion matrix (K, K + 1) of a batch, flattened, in float64.

    Args:
        outputs: scores (N, K, ...).
        y: class numbers (N, ...).
        ignored: a number in `y` that does not count.
    """
    k = outputs.shape[1]
    predicted = torch.where(outputs.isnan().any(dim=1), k, outputs.argmax(dim=1))
    cells = y * (k + 1) + predicted
    cells = cells.flatten() if ignored is None else cells[y != ignored]
    return torch.bincount(cells, minlength=k * (k + 1)).double()


def as_matrix(total: Tensor) -> Tensor:
    """A flattened confusion matrix as (K, K + 1)."""
    k = (math.isqrt(4 * len(total) + 1) - 1) // 2
    return total.reshape(k, k + 1)


def share_of_right(total: Tensor) -> float:
    """The share of predictions that are right, of a flattened confusion matrix."""
    return float(as_matrix(total).diagonal().sum() / total.sum())
