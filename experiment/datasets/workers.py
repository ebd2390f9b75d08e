"""Large images, or transforms that batches cannot do: image by image, through DataLoader workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiment.datasets.image import EVALUATION, Batch, Share, count_batches, share_of
from experiment.datasets.samples import as_pair
from experiment.datasets.source import Items, check_labels
from experiment.datasets.transforms import Pipeline
from experiment.errors import DataError, ExperimentError, raised_at
from experiment.registry import InputShape
from experiment.streams import Part, generator, seeded


@dataclass(frozen=True)
class _Failure:
    """What went wrong with one image, as text: an exception would come out of a worker wrapped in a traceback."""

    message: str


class WorkerImages:
    """Images read when needed (see `experiment.datasets.image.Images`).

    Args:
        items: the whole dataset part. name: what errors call it.
        indices: which of the items are meant, in their fixed order.
        workers: processes that read ahead; the images do not depend on how many there are.
    """

    def __init__(
        self,
        name: str,
        items: Items,
        train: Pipeline,
        test: Pipeline,
        num_classes: int,
        *,
        indices: Tensor | None = None,
        device: torch.device,
        workers: int = 2,
    ) -> None:
        self._name, self._items, self._train, self._test = name, items, train, test
        self._num_classes, self._device, self._workers = num_classes, device, workers
        self._indices = torch.arange(len(items)) if indices is None else indices.cpu()
        first = self.first(1)[0]
        self._input_shape = InputShape(first.shape[1:], tokens=not first.is_floating_point())
        self._to_device(_collate([self._epoch(EVALUATION, torch.tensor([0]))[0]]), False)  # a bad crop fails at once

    @property
    def input_shape(self) -> InputShape:
        return self._input_shape

    def __len__(self) -> int:
        return len(self._indices)

    def batches(
        self,
        batch_size: int,
        *,
        stream: tuple[Part, ...] | None,
        channels_last: bool = False,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        positions = torch.randperm(len(self), generator=generator(*stream, "order")) if stream else None
        num_batches = count_batches(len(self), batch_size, training=stream is not None)
        if share is not None:
            end = min(len(self), batch_size * num_batches)
            own, batch_size = share_of(end, batch_size, share, training=stream is not None)
            positions = own if positions is None else positions[own]
        loader = DataLoader(
            self._epoch(stream, positions),
            batch_size=batch_size,
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=self._device.type == "cuda",
            generator=generator("loader"),  # or else it takes a seed from the global generator
        )
        for _, batch in zip(range(num_batches), loader, strict=False):
            yield self._to_device(batch, channels_last)

    def take(self, indices: Tensor) -> Batch:
        epoch = self._epoch(None, indices.cpu())
        return self._to_device(_collate([epoch[i] for i in range(len(epoch))]), False)

    def first(self, n: int) -> Batch:
        return self.take(torch.arange(min(n, len(self))))

    def _epoch(self, stream: tuple[Part, ...] | None, positions: Tensor | None) -> _Epoch:
        positions = torch.arange(len(self)) if positions is None else positions
        pipeline = self._train if stream else self._test
        return _Epoch(self._items, self._indices, positions, pipeline, (*(stream or EVALUATION), "augment"))

    def _to_device(self, batch: Batch | _Failure, channels_last: bool) -> Batch:
        if isinstance(batch, _Failure):
            raise DataError(f"{self._name}: {batch.message}")
        x, y = batch
        check_labels(self._name, y, self._num_classes)
        x, y = x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True)
        return (x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x), y


class _Epoch(Dataset[tuple[Tensor, int] | _Failure]):
    """The images of one epoch in its order; each is transformed under a seed of its own place in the fixed order."""

    def __init__(
        self, items: Items, indices: Tensor, positions: Tensor, pipeline: Pipeline, stream: tuple[Part, ...]
    ) -> None:
        self.items, self.indices, self.positions = items, indices, positions
        self.pipeline, self.stream = pipeline, stream

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | _Failure:
        position = int(self.positions[index])
        item = int(self.indices[position])
        try:
            with seeded(*self.stream, position):
                image, label = as_pair(f"sample {item}", self.items[item])
                return self.pipeline(image), label
        except ExperimentError as error:
            return _Failure(str(error))
        except Exception as error:  # of a decoder, a transform or the user's own code: any class
            reason = f"{type(error).__name__}: {str(error)[:500]}{raised_at(error)}"
            return _Failure(f"image {item} cannot be read or transformed: {reason}")


def _collate(samples: list[tuple[Tensor, int] | _Failure]) -> Batch | _Failure:
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        return _Failure(
            f"images of different shapes after the transforms: {', '.join(map(str, sorted(shapes)[:3]))}. Add Resize "
            "and CenterCrop to transformsTest, RandomResizedCrop to transformsTrain."
        )
    return torch.stack(images), torch.tensor(labels)
