"""Texts, or pairs of texts: one of K classes, or one number."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from experiment.tasks.classification import TASK as CLASSES
from experiment.tasks.confusion import as_matrix, confusion, share_of_right
from experiment.tasks.regression import TASK as NUMBERS
from experiment.tasks.task import Metric, Task


def matthews(counts: Tensor) -> Tensor:
    """Matthews' correlation of a confusion matrix (K, K + 1); 0 if all targets or all predictions are equal.

    Source: Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006
    """
    n, targets, predictions = counts.sum(), counts.sum(1), counts.sum(0)
    covariance = n * counts.diagonal().sum() - targets @ predictions[:-1]
    spread = (n.square() - targets.square().sum()) * (n.square() - predictions.square().sum())
    return covariance / spread.sqrt() if spread > 0 else spread


def f1(counts: Tensor) -> Tensor:
    """F1 = 2 TP / (2 TP + FP + FN) of class 1 of two; of more, the mean over those that are target or prediction."""
    right, both = counts.diagonal(), counts.sum(1) + counts.sum(0)[:-1]
    scores = 2 * right / both.clamp(min=1)
    return scores[1] if len(counts) == 2 else scores[both > 0].mean()


def _pairs(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.stack([outputs.flatten(), y.flatten()], dim=1).double()


def pearson(rows: Tensor) -> float:
    """Pearson's correlation of two columns (n, 2); 0 if one of them is constant."""
    if bool((rows == rows[:1]).all(dim=0).any()):
        return 0.0
    x, y = (rows - rows.mean(dim=0)).unbind(1)
    return float(x @ y / (x.norm() * y.norm()))


def spearman(rows: Tensor) -> float:
    """Spearman's rank correlation of two columns (n, 2); equal values share their mean rank."""
    ranks = []
    for column in rows.unbind(1):
        _, places, counts = torch.unique(column, return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum(0) - (counts - 1) / 2)[places])
    return pearson(torch.stack(ranks, dim=1).double()) if bool(rows.isfinite().all()) else math.nan


METRICS = (
    Metric("top1", "top-1", confusion, share_of_right),
    Metric("mcc", "Matthews correlation", confusion, lambda total: float(matthews(as_matrix(total)))),
    Metric("f1", "F1", confusion, lambda total: float(f1(as_matrix(total)))),
)


def _classification(*order: int) -> Task:
    """The task whose metrics are in this order; the first is the primary one."""
    return replace(CLASSES, name="text classification", metrics=tuple(METRICS[i] for i in order))


CLASSIFICATION, BY_MCC, BY_F1 = _classification(0, 1, 2), _classification(1, 0, 2), _classification(2, 0, 1)

REGRESSION = replace(
    NUMBERS,
    name="text regression",
    metrics=(
        Metric("pearson", "Pearson correlation", _pairs, pearson, joined=True),
        Metric("spearman", "Spearman correlation", _pairs, spearman, joined=True),
    ),
    losses=("MSELoss", "L1Loss", "SmoothL1Loss"),
)
