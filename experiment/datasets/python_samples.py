"""A dataset passed in Python, read in this process, with inputs of any shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from experiment.datasets.check_samples import as_pair, check_map_style
from experiment.datasets.image_data import EVALUATION, Batch, Share, Stream, epoch_order
from experiment.errors import DataError, kind_of
from experiment.random_streams import seeded
from experiment.registry import InputShape


class PairData:
    """A map-style dataset or a pair of tensors as batches (see `experiment.datasets.image_data.Images`).

    Random transforms in it draw from torch's generators, which are seeded for every batch.

    Args:
        name: of the data in error messages.
        data: a dataset with a length and (input tensor, class number) by index, or tensors (inputs, targets).
        device: of the batches.
    Raises: DataError: `data` is neither, or empty.
    """

    def __init__(self, name: str, data: Any, device: torch.device) -> None:
        if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            if len(data[0]) != len(data[1]):
                raise DataError(f"{name}: expected as many targets as inputs ({len(data[0])}). Got {len(data[1])}.")
            data = torch.utils.data.TensorDataset(*data)
        try:
            check_map_style(data)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        self.name, self._data, self._device = name, data, device

    @property
    def input_shape(self) -> InputShape:
        """The shape of one input."""
        x = self.first(1)[0]
        return InputShape(x.shape[1:], tokens=not x.is_floating_point())

    def __len__(self) -> int:
        return len(self._data)

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        order, _, batch_size = epoch_order(len(self), batch_size, stream, share)
        for i, indices in enumerate(torch.split(order, batch_size) if len(order) else ()):
            with seeded(*(stream or EVALUATION), "batch", i):
                x, y = self.take(indices)
            yield (x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x), y

    def take(self, indices: Tensor) -> Batch:
        samples = [self._data[i] for i in indices.tolist()]
        inputs, labels = [], []
        for i, sample in zip(indices.tolist(), samples, strict=True):
            x, label = as_pair(f"{self.name}: sample {i}", sample)
            if not isinstance(x, Tensor):
                raise DataError(
                    f"{self.name}: expected tensors as inputs (use transform=ToTensor()). Got {kind_of(x)}."
                )
            inputs.append(x)
            labels.append(label)
        shapes = {tuple(x.shape) for x in inputs}
        if len(shapes) > 1:
            came = ", ".join(map(str, sorted(shapes)[:3]))
            raise DataError(f"{self.name}: expected inputs of one shape. Got {came}. Resize, crop or pad them.")
        return torch.stack(inputs).to(self._device), torch.tensor(labels).to(self._device)

    def some(self, n: int) -> Batch:
        """At most `n` samples, evenly spread, the same in every call."""
        with seeded("some"):
            return self.take(torch.linspace(0, len(self) - 1, min(n, len(self))).round().long())

    def first(self, n: int) -> Batch:
        return self.take(torch.arange(min(n, len(self))))
