"""Image classification: one of K classes per input."""

import torch
from torch import Tensor

from experiment.errors import DataError
from experiment.inputs import as_numbers, in_words
from experiment.tasks.task import Metric, Task

OTHER_TASKS = "Other targets need another task, such as segmentation: network.task, or task=... in Python."


def top(k: int, ignored: int | None = None) -> Metric:
    """The share of targets (N, ...) that are among the first `k` of the scores (N, K, ...); 1 with at most `k` classes.

    Scores that are NaN count as wrong answers, targets that are `ignored` do not count.
    """

    def hits(outputs: Tensor, y: Tensor) -> Tensor:
        answered = ~outputs.isnan().any(dim=1)
        best = outputs.topk(min(k, outputs.shape[1]), dim=1).indices if k > 1 else outputs.argmax(dim=1, keepdim=True)
        counted = torch.ones_like(answered) if ignored is None else y != ignored
        right = (best == y.unsqueeze(1)).any(dim=1) & answered & counted
        return torch.stack([right.sum(), counted.sum()]).double()

    return Metric(f"top{k}", f"top-{k}", hits, ratio, mappable=True)


def ratio(sums: Tensor) -> float:
    """The first sum divided by the second."""
    return float(sums[0] / sums[1])


def class_number(where: str, target: object) -> Tensor:
    """A class number, of any type of integer, as int64.

    Raises: DataError: it is something else.
    """
    number = as_numbers(target)
    if number is None or number.numel() != 1 or isinstance(target, list | tuple) or not float(number).is_integer():
        raise DataError(f"{where}: expected one class number as target. Got {in_words(target)}. {OTHER_TASKS}")
    return number.reshape(()).long()


def check_classes(where: str, output_size: int, labels: Tensor) -> None:
    """Check that class numbers lie in 0 to output_size - 1.

    Raises: DataError: they do not.
    """
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= output_size):
        raise DataError(
            f"{where}: class numbers from {int(labels.min())} to {int(labels.max())}; expected 0 to {output_size - 1} "
            f"with network.outputSize {output_size}. Number the classes from 0, or set outputSize."
        )


TASK = Task(
    "classification",
    metrics=(top(1), top(5)),
    losses=("CrossEntropyLoss", "MultiMarginLoss", "NLLLoss"),
    target=class_number,
    check=check_classes,
)
