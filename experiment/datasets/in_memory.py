"""Small images: one uint8 tensor on the device, augmented and normalised some batches at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Mask

from experiment.datasets.batch_transforms import Affine, Operation, Shape, compile_steps, split_once
from experiment.datasets.image_data import EVALUATION, Batch, Share, Step, Stream, epoch_order
from experiment.datasets.raw_images import Pixels, fits_in_memory
from experiment.datasets.transforms import make_transform, outside_ignored, zero_outside
from experiment.random_streams import Part, generator
from experiment.registry import InputShape

# Of float images transformed at once, by the kind of device: on a CPU what fits into its caches, elsewhere few calls.
CHUNK_BYTES = {"cpu": 4_000_000}
CHUNK_BYTES_ELSEWHERE = 64_000_000


@dataclass(frozen=True)
class Prepared:
    """Pixels (N, C, H, W), uint8, after the one-time steps, and the operations to apply to every batch of them."""

    pixels: Tensor
    operations: tuple[Operation, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """(C, H, W) before each operation and after the last."""
        c, h, w = self.pixels.shape[1:]
        shapes: list[Shape] = [(c, h, w)]
        for operation in self.operations:
            shapes.append(operation.shape(shapes[-1]))
        return tuple(shapes)


class MemoryImages:
    """Images in memory (see `experiment.datasets.image_data.Images`).

    Args:
        train, test: the pixels of the whole part for the training and the test pipeline, usually one shared tensor.
        labels: targets (N, ...), on the device of the pixels; a `Mask` (N, H, W) of classes is moved like its images.
        indices: which of the N images to use, in their fixed order; None for all.
    """

    def __init__(self, train: Prepared, test: Prepared, labels: Tensor, indices: Tensor | None = None) -> None:
        self._train, self._test, self._labels = train, test, labels
        self._indices = torch.arange(len(labels), device=labels.device) if indices is None else indices
        self._input_shape = InputShape(test.shapes[-1])

    @property
    def input_shape(self) -> InputShape:
        return self._input_shape

    def __len__(self) -> int:
        return len(self._indices)

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        prepared = self._test if stream is None else self._train
        order, places, batch_size = epoch_order(len(self), batch_size, stream, share)
        rows, places = self._indices[order.to(self._indices.device)], places.to(self._indices.device)
        draws = [None if d is None else d[places] for d in self._draw(prepared, stream or EVALUATION)]
        chunk_bytes = CHUNK_BYTES.get(rows.device.type, CHUNK_BYTES_ELSEWHERE)
        images_at_once = chunk_bytes // (4 * prepared.pixels[0].numel())
        step = batch_size * max(1, images_at_once // batch_size)
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            drawn = [None if d is None else d[chunk] for d in draws]
            x, y = _apply(prepared, rows[chunk], drawn), self._targets(prepared, rows[chunk], drawn)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            for i in range(0, len(x), batch_size):
                yield x[i : i + batch_size], y[i : i + batch_size]

    def take(self, indices: Tensor) -> Batch:
        indices = indices.to(self._indices.device)
        rows = self._indices[indices]
        draws = [None if d is None else d[indices] for d in self._draw(self._test, EVALUATION)]
        return _apply(self._test, rows, draws), self._targets(self._test, rows, draws)

    def first(self, n: int) -> Batch:
        return self.take(torch.arange(min(n, len(self))))

    def _targets(self, prepared: Prepared, rows: Tensor, draws: Sequence[Tensor | None]) -> Tensor:
        """The targets at the given rows, maps cropped and flipped with the draws of their images."""
        y = self._labels[rows]
        if not isinstance(self._labels, Mask):
            return y
        moved: Tensor = zero_outside(y).unsqueeze(1)
        for operation, drawn in zip(prepared.operations, draws, strict=True):
            if not isinstance(operation, Affine):  # which moves nothing
                moved = operation.apply(Mask(moved), drawn)
        return outside_ignored(moved.squeeze(1))

    def _draw(self, prepared: Prepared, stream: tuple[Part, ...]) -> list[Tensor | None]:
        """The random numbers of every image and operation, drawn on the CPU: the same for every device."""
        draws = [
            operation.draw(len(self), shape, generator(*stream, "augment", i))
            for i, (operation, shape) in enumerate(zip(prepared.operations, prepared.shapes, strict=False))
        ]
        return [None if d is None else d.to(self._indices.device) for d in draws]


def prepare(pixels: Pixels, pipelines: Sequence[Sequence[Step]], device: torch.device) -> tuple[Prepared, ...] | None:
    """Prepare pixels for each pipeline; pipelines share the tensor if they can.

    Returns: None if a step has no batched form, or makes the images too large for memory; also if images with maps
        are resized.
    """
    made: dict[str, Tensor] = {}
    prepared = []
    for steps in pipelines:
        once, every = split_once(steps)
        if once and isinstance(pixels.labels, Mask):
            return None
        if repr(once) not in made:
            images = _once(pixels, once) if once else pixels.images
            if images is None:
                return None
            made[repr(once)] = images.to(device)
        c, h, w = made[repr(once)].shape[1:]
        operations = compile_steps(every, (c, h, w))
        if operations is None:
            return None
        prepared.append(Prepared(made[repr(once)], tuple(operations)))
    return tuple(prepared)


def _once(pixels: Pixels, steps: Sequence[Step]) -> Tensor | None:
    """Apply the one-time steps image by image, with torchvision's own transforms."""
    transforms = [make_transform(name, arguments) for name, arguments in steps]
    images: Tensor | None = None
    for i in range(len(pixels)):
        image, _ = pixels[i]
        for transform in transforms:
            image = transform(image)
        made = image.as_subclass(Tensor) if isinstance(image, Tensor) else functional.pil_to_tensor(image)
        if images is None:
            if not fits_in_memory(len(pixels), tuple(made.shape)):
                return None
            images = torch.empty((len(pixels), *made.shape), dtype=torch.uint8)
        images[i] = made
    return images


def _apply(prepared: Prepared, rows: Tensor, draws: Sequence[Tensor | None]) -> Tensor:
    """Float images (B, C, H, W) at the given rows."""
    x = prepared.pixels.index_select(0, rows)
    for operation, drawn in zip(prepared.operations, draws, strict=True):
        x = operation.apply(x, drawn)
    return x if x.is_floating_point() else x.float().mul_(1 / 255)
