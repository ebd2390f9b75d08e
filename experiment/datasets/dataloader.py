"""Large images, or transforms without a batched form: read image by image in DataLoader workers."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from experiment.datasets.batch_transforms import constants
from experiment.datasets.check_samples import as_pair, first_few
from experiment.datasets.image_data import EVALUATION, Batch, Share, Stream, epoch_order
from experiment.datasets.raw_images import Items
from experiment.datasets.transforms import Pipeline, require_channels
from experiment.errors import DataError, ExperimentError, raised_at
from experiment.inputs import Inputs, arranged, form_of, moved, stack
from experiment.random_streams import Part, generator, seeded
from experiment.registry import InputForm
from experiment.tasks.task import Task, read_target

PR_SET_PDEATHSIG = 1  # of Linux's prctl
AS_FLOATS = Pipeline(())

Target = Callable[[str, Any], Tensor]


@dataclass(frozen=True)
class _Failure:
    """An error as text: a worker would wrap an exception in a traceback."""

    message: str


class WorkerImages:
    """Images read when they are needed (see `experiment.datasets.image_data.Images`).

    Args:
        name: of the data in error messages.
        readers: read the whole part of the dataset.
        task, output_size: check the targets.
        indices: which of its items to use, in their fixed order; None for all.
    """

    def __init__(
        self,
        name: str,
        readers: Readers,
        task: Task,
        output_size: int,
        *,
        indices: Tensor | None = None,
        device: torch.device,
    ) -> None:
        self._name, self._readers, self._task, self._output_size = name, readers, task, output_size
        self._device = device
        self._indices = torch.arange(len(readers.samples.items)) if indices is None else indices.cpu()
        self._input_shape = form_of(self.first(1)[0])
        self._gather(torch.tensor([0]), EVALUATION, training=True)  # a bad crop fails at once

    @property
    def input_shape(self) -> InputForm:
        return self._input_shape

    def __len__(self) -> int:
        return len(self._indices)

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        order, _, batch_size = epoch_order(len(self), batch_size, stream, share)
        batches = torch.split(order, batch_size) if len(order) else ()
        places = (self._places(batch, stream or EVALUATION, stream is not None) for batch in batches)
        for batch in self._readers.read(places, pin_memory=self._device.type == "cuda"):
            yield self._to_device(batch, channels_last)

    def take(self, indices: Tensor) -> Batch:
        return self._gather(indices.cpu(), EVALUATION, training=False)

    def first(self, n: int) -> Batch:
        return self.take(torch.arange(min(n, len(self))))

    def _gather(self, positions: Tensor, stream: tuple[Part, ...], *, training: bool) -> Batch:
        """Read the images at these positions in this process."""
        samples = self._readers.samples
        places = self._places(positions, stream, training)
        return self._to_device(samples.collate([samples[place] for place in places]), False)

    def _places(self, positions: Tensor, stream: tuple[Part, ...], training: bool) -> list[_Place]:
        seeds = (*stream, "augment")
        items = self._indices[positions].tolist()
        return [_Place(i, training, (*seeds, p)) for i, p in zip(items, positions.tolist(), strict=True)]

    def _to_device(self, batch: Batch | _Failure, channels_last: bool) -> Batch:
        if isinstance(batch, _Failure):
            raise DataError(f"{self._name}: {batch.message}")
        x, y = batch
        self._task.check(self._name, self._output_size, y)
        x, y = moved(x, self._device, non_blocking=True), y.to(self._device, non_blocking=True)
        if not _is_raw(x, 4):
            return arranged(x, channels_last=channels_last), y
        order = torch.channels_last if channels_last else torch.contiguous_format
        try:
            return _finished(self._readers.samples.finish, x.contiguous(memory_format=order)), y
        except ExperimentError as error:
            raise DataError(f"{self._name}: {error}") from error
        except Exception as error:  # transforms may raise anything
            raise DataError(f"{self._name}: images cannot be transformed: {_reason(error)}") from error


class _Place(NamedTuple):
    """What a worker needs to read one item."""

    item: int
    training: bool
    seed: tuple[Part, ...]


class _Samples(Dataset[tuple[Inputs, Tensor] | _Failure]):
    """Items, each transformed under its own seed. Images of 8 bits stay so: a quarter of the bytes of floats."""

    def __init__(self, items: Items, train: Pipeline, test: Pipeline, finish: Pipeline, target: Target) -> None:
        self.items, self.train, self.test, self.finish, self.target = items, train, test, finish, target

    def __getitem__(self, place: _Place) -> tuple[Inputs, Tensor] | _Failure:
        pipeline = self.train if place.training else self.test
        try:
            with seeded(*place.seed):
                where = f"sample {place.item}"
                image, target = as_pair(where, self.items[place.item])
                y = read_target(self.target, where, target)
                x, y = pipeline.with_map(image, y) if isinstance(target, Mask) else (pipeline(image), y)
                return (x if _is_raw(x, 3) else self.finish(x)), y
        except ExperimentError as error:
            return _Failure(str(error))
        except Exception as error:  # decoders, transforms and the user's code may raise anything
            return _Failure(f"image {place.item} cannot be read or transformed: {_reason(error)}")

    def collate(self, samples: list[tuple[Inputs, Tensor] | _Failure]) -> Batch | _Failure:
        """A batch. Its images are raw if all of them are."""
        failures = [sample for sample in samples if isinstance(sample, _Failure)]
        if failures:
            return _Failure(first_few([failure.message for failure in failures]))
        images, targets = zip(*cast(list[tuple[Inputs, Tensor]], samples), strict=True)
        raw = [_is_raw(image, 3) for image in images]
        try:
            if all(raw) and len({image.shape for image in images}) == 1:  # whole rows of pixels, as decoders leave them
                return torch.stack([x.permute(1, 2, 0) for x in images]).permute(0, 3, 1, 2), torch.stack(targets)
            finished = [self.finish(x) if is_raw else x for x, is_raw in zip(images, raw, strict=True)]
            return stack(finished), torch.stack(targets)
        except ValueError as error:
            what, how = "images", "Add Resize and CenterCrop to transformsTest, RandomResizedCrop to transformsTrain."
            if any(not isinstance(image, Tensor) for image in images):
                what, how = "inputs", "Pad them in the dataset, and give every sample the same keys."
            return _Failure(f"{what} of different shapes after the transforms: {error}. {how}")


def _is_raw(x: Inputs, dims: int) -> bool:
    """Whether these are pixels of 8 bits, of one image (C, H, W) or a batch (N, C, H, W)."""
    return isinstance(x, Tensor) and x.dtype == torch.uint8 and x.dim() == dims


def _finished(finish: Pipeline, images: Tensor) -> Tensor:
    """Raw images (N, C, H, W) after ToTensor and Normalize, with the bits that torchvision gives for each of them.

    On a CPU they are computed one by one, since a batch exceeds its caches. In channels-last they are computed as rows
    of W * C values: torch is slow where the last dimension is as short as the channels.
    """
    floats, channels, width = torch.empty_like(images, dtype=torch.float32), images.shape[1], images.shape[3]
    inputs, outputs = images, floats
    rows = images.is_contiguous(memory_format=torch.channels_last)
    if rows:
        inputs, outputs = (x.permute(0, 2, 3, 1).flatten(2) for x in (images, floats))
    moments = []
    for i, t in enumerate(finish.transforms):
        if isinstance(t, v2.Normalize):
            require_channels(t, channels, f"transformsFinal[{i}]: ")
            both = [constants(tuple(values), images.device).expand(channels, 1, 1) for values in (t.mean, t.std)]
            moments.append([values.flatten().repeat(width) for values in both] if rows else both)
    each = 1 if images.device.type == "cpu" else len(images)
    for x, y in zip(torch.split(inputs, each), torch.split(outputs, each), strict=True):
        y.copy_(x).mul_(1.0 / 255)
        for mean, std in moments:
            y.sub_(mean).div_(std)
    return floats


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}{raised_at(error)}"


class Readers:
    """Processes that read items ahead and persist between epochs. Their number does not affect what is read.

    Args:
        items: a whole part of a dataset.
        train, test: the transforms for training and for evaluation.
        workers: the number of processes; 0 to read in this one.
        target: makes a tensor of the target of a sample.
        finish: the last transforms, done for whole batches on the device if `train` and `test` leave raw images.
    """

    def __init__(
        self, items: Items, train: Pipeline, test: Pipeline, workers: int, target: Target, finish: Pipeline = AS_FLOATS
    ) -> None:
        self.samples, self.workers = _Samples(items, train, test, finish, target), workers
        self._order = _Order()
        self._loader: DataLoader[tuple[Inputs, Tensor] | _Failure] | None = None
        self._at_work = False

    def read(self, places: Iterable[list[_Place]], *, pin_memory: bool) -> Iterator[Batch | _Failure]:
        """Yield a batch for each list of places."""
        if self._at_work:  # a loader yields one epoch at a time: start other processes for this one
            yield from self._make(_Order(places), pin_memory, persistent=False)
            return
        self._at_work, self._order.places = True, places
        if self._loader is None:
            self._loader = self._make(self._order, pin_memory, persistent=self.workers > 0)
        try:
            yield from self._loader
        except BaseException:  # also if the generator is closed early: the workers still send the rest of its epoch
            self._loader = None
            raise
        finally:
            self._at_work = False

    def _make(
        self, order: _Order, pin_memory: bool, *, persistent: bool
    ) -> DataLoader[tuple[Inputs, Tensor] | _Failure]:
        return DataLoader(
            self.samples,
            batch_sampler=order,
            num_workers=self.workers,
            collate_fn=self.samples.collate,
            pin_memory=pin_memory,
            persistent_workers=persistent,
            worker_init_fn=_end_with_parent,
            generator=generator("loader"),  # without one it draws a seed from the global generator
        )


def _end_with_parent(worker: int) -> None:
    """On Linux, end a worker as soon as its parent is killed; elsewhere this takes seconds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Order(Sampler[list[_Place]]):
    """The batches of the current epoch."""

    def __init__(self, places: Iterable[list[_Place]] = ()) -> None:
        self.places = places

    def __iter__(self) -> Iterator[list[_Place]]:
        return iter(self.places)
