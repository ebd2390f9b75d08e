"""Semantic segmentation: one of K classes per pixel. Pixels of class 255 have no class and count nowhere.

Shapes: outputs (N, K, H, W), targets (N, H, W).
"""

from functools import partial

import torch
from torch import Tensor

from experiment.errors import DataError
from experiment.inputs import as_numbers, in_words
from experiment.tasks.confusion import as_matrix, confusion, share_of_right
from experiment.tasks.task import Metric, Task

IGNORED = 255
_confusion = partial(confusion, ignored=IGNORED)


def mean_iou(counts: Tensor) -> float:
    """Mean over classes of |found and true| / |found or true|, from the `confusion` of a whole dataset.

    Classes that are neither in the targets nor in the predictions are left out of the mean.

    Source: Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4
    Differs: torchprune averages over batches, so its figure depends on the batch size.
    """
    table = as_matrix(counts)
    right = table.diagonal()
    union = table.sum(dim=1) + table[:, :-1].sum(dim=0) - right
    return float((right / union)[union > 0].mean())


def class_map(where: str, target: object) -> Tensor:
    """The class numbers of all pixels, of any type of integer, as int64 (H, W).

    Raises: DataError: it is something else.
    """
    array = as_numbers(target)
    if array is not None and array.dim() == 3 and len(array) == 1:
        array = array[0]
    if array is None or array.dim() != 2 or array.is_floating_point():
        raise DataError(
            f"{where}: expected a map of class numbers as target, integers (height, width). Got {in_words(target)}."
        )
    return array.to(torch.int64)


def check_map(where: str, output_size: int, maps: Tensor) -> None:
    """Check that the class numbers of maps are 255 or lie in 0 to output_size - 1.

    Raises: DataError: they do not.
    """
    if output_size > IGNORED:
        raise DataError(f"{where}: segmentation has at most {IGNORED} classes. Got network.outputSize {output_size}.")
    wrong = maps[(maps != IGNORED) & ((maps < 0) | (maps >= output_size))]
    if len(wrong):
        raise DataError(
            f"{where}: its map has class {int(wrong[0])}; expected 0 to {output_size - 1} with network.outputSize "
            f"{output_size}, or {IGNORED} for pixels without a class. Number the classes from 0, or set outputSize."
        )


TASK = Task(
    "segmentation",
    metrics=(
        Metric("mean_iou", "mean IoU", _confusion, mean_iou),
        Metric("pixel_accuracy", "pixel accuracy", _confusion, share_of_right),
    ),
    losses=("CrossEntropyLossWithAuxiliary", "CrossEntropyLoss"),
    target=class_map,
    check=check_map,
    loss_kwargs={"ignore_index": IGNORED},
)
