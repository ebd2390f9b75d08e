"""Many labels: each of K labels holds for an input or not.

Shape suffixes: N = samples, K = labels. An output is the logit of its label.
"""

import torch
from torch import Tensor

from experiment.errors import DataError
from experiment.tasks.distributions import BERNOULLI
from experiment.tasks.regression import check_numbers, numbers
from experiment.tasks.task import Metric, Task


def _rows(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.cat([outputs.double(), y.double()], dim=1)


def mean_average_precision(rows: Tensor) -> float:
    """The mean of the average precision of the labels that hold for any sample; NaN if there is none.

    AP = sum over thresholds of (recall - last recall) * precision: samples with equal outputs share a threshold.
    Outputs that are NaN come last.
    Source: Everingham et al. 2015, https://doi.org/10.1007/s11263-014-0733-5, as scikit-learn computes it.
    """
    scores_NK, y_NK = rows.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).chunk(2, dim=1)
    found = [_average_precision(scores_NK[:, k], y_NK[:, k]) for k in range(y_NK.shape[1]) if y_NK[:, k].any()]
    return float(torch.stack(found).mean()) if found else float("nan")


def _average_precision(scores_N: Tensor, y_N: Tensor) -> Tensor:
    scores_N, order = scores_N.sort(descending=True)
    right = y_N[order].cumsum(0)
    last = torch.cat([scores_N[1:] != scores_N[:-1], torch.ones(1, dtype=torch.bool, device=scores_N.device)])
    right, taken = right[last], (last.nonzero()[:, 0] + 1).double()
    recall = right / right[-1]
    return (recall.diff(prepend=recall.new_zeros(1)) * right / taken).sum()


def counts(outputs: Tensor, y: Tensor) -> Tensor:
    """Labels that were predicted rightly (output above 0), predicted, and present, over all samples and labels."""
    predicted, present = outputs > 0, y > 0
    return torch.stack([(predicted & present).sum(), predicted.sum(), present.sum()]).double()


def f1(sums: Tensor) -> float:
    """Micro F1 = 2 TP / (2 TP + FP + FN) over all samples and labels; 0 if no label is predicted or present."""
    return float(2 * sums[0] / (sums[1] + sums[2]).clamp(min=1))


def labels(where: str, target: object) -> Tensor:
    """0 or 1 for every label, as float32 (K,).

    Raises: DataError: it is something else.
    """
    found = numbers(where, target)
    if bool(((found != 0) & (found != 1)).any()):
        raise DataError(f"{where}: expected 0 or 1 for every label as target. Got {found.tolist()}. Mend the sample.")
    return found


def check_labels(where: str, output_size: int, targets: Tensor) -> None:
    """Check that the network has an output for every label, and that labels are 0 or 1.

    Raises: DataError: they are not.
    """
    check_numbers(where, output_size, targets)
    if len(wrong := ((targets != 0) & (targets != 1)).any(dim=1).nonzero()):
        labels(f"{where}: sample {int(wrong[0])}", targets[int(wrong[0])])


TASK = Task(
    "multilabel",
    metrics=(
        Metric("mean_average_precision", "mean average precision", _rows, mean_average_precision, joined=True),
        Metric("f1", "F1", counts, f1),
    ),
    losses=("BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"),
    target=labels,
    check=check_labels,
    distribution=BERNOULLI,
)
