"""A dataset passed in Python, read in this process, with inputs of any shape."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from experiment.datasets.check_samples import as_pair, check_map_style
from experiment.datasets.image_data import EVALUATION, Batch, Share, Stream, epoch_order
from experiment.errors import DataError, kind_of
from experiment.inputs import (
    LABELS,
    Inputs,
    arranged,
    as_inputs,
    batch_size,
    form_of,
    moved,
    over_samples,
    stack,
    tensors,
    without_labels,
)
from experiment.random_streams import seeded
from experiment.registry import InputForm
from experiment.tasks.classification import TASK as CLASSIFICATION
from experiment.tasks.task import Task, read_target


class _Samples:
    """A batch of inputs and its targets, by index."""

    def __init__(self, inputs: Inputs, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        return over_samples(self._inputs, lambda tensor: tensor[index]), self._targets[index]


def _is_batch(inputs: object, targets: object) -> bool:
    """Whether these are the inputs and targets of a batch, rather than two samples."""
    if not isinstance(targets, Tensor) or not targets.dim():
        return False
    return isinstance(inputs, Tensor | Mapping) or (isinstance(inputs, tuple | list) and bool(tensors(inputs)))


class PairData:
    """A map-style dataset or a pair of tensors as batches (see `experiment.datasets.image_data.Images`).

    Random transforms in it draw from torch's generators, which are seeded for every batch.

    Args:
        name: of the data in error messages.
        data: a dataset with a length and (input, target) by index, or a pair (inputs, targets) of batches.
        device: of the batches.
        task: what the targets mean.
    Raises: DataError: `data` is neither, or empty.
    """

    def __init__(self, name: str, data: Any, device: torch.device, task: Task = CLASSIFICATION) -> None:
        if isinstance(data, Mapping):  # such as a tokenizer's output
            data = without_labels(data) if LABELS in data else data
        if isinstance(data, tuple | list) and len(data) == 2 and _is_batch(*data):
            inputs, targets = data if isinstance(data[0], Tensor) else (as_inputs(data[0], name), data[1])
            if batch_size(inputs) != len(targets):
                got = f"{batch_size(inputs)}). Got {len(targets)}."
                raise DataError(f"{name}: expected as many targets as inputs ({got}")
            data = torch.utils.data.TensorDataset(inputs, targets) if inputs is data[0] else _Samples(inputs, targets)
        try:
            check_map_style(data)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        self.name, self._data, self._device, self._task = name, data, device, task

    @property
    def input_shape(self) -> InputForm:
        """The shape of one input."""
        return form_of(self.first(1)[0])

    def __len__(self) -> int:
        return len(self._data)

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        order, _, batch_size = epoch_order(len(self), batch_size, stream, share)
        for i, indices in enumerate(torch.split(order, batch_size) if len(order) else ()):
            with seeded(*(stream or EVALUATION), "batch", i):
                x, y = self.take(indices)
            yield arranged(x, channels_last=channels_last), y

    def take(self, indices: Tensor) -> Batch:
        samples = [self._data[i] for i in indices.tolist()]
        inputs, targets = [], []
        for i, sample in zip(indices.tolist(), samples, strict=True):
            where = f"{self.name}: sample {i}"
            x, target = as_pair(where, sample)
            if not isinstance(x, Tensor) and not tensors(x):
                raise DataError(
                    f"{self.name}: expected tensors as inputs (use transform=ToTensor()). Got {kind_of(x)}."
                )
            inputs.append(x)
            targets.append(read_target(self._task.target, where, target))
        try:
            batch = stack(inputs)
        except ValueError as error:
            raise DataError(
                f"{self.name}: expected inputs of one shape. Got {error}. Resize, crop or pad them."
            ) from None
        return moved(batch, self._device), torch.stack(targets).to(self._device)

    def some(self, n: int) -> Batch:
        """At most `n` samples, evenly spread, the same in every call."""
        with seeded("some"):
            return self.take(torch.linspace(0, len(self) - 1, min(n, len(self))).round().long())

    def first(self, n: int) -> Batch:
        return self.take(torch.arange(min(n, len(self))))
