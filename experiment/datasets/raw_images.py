"""Images before any transform: one tensor of pixels in memory, or items read one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Mask

from experiment.datasets.check_samples import as_pair, first_few
from experiment.errors import ConfigError, DataError
from experiment.inputs import as_numbers
from experiment.random_streams import generator
from experiment.registry import suggestion

MAX_SIDE = 64  # pixels: larger images are decoded when they are needed
MAX_BYTES = 1_000_000_000


class Items(Protocol):
    """A map-style dataset: an input (PIL image or tensor) and its target by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[object, Any]: ...


@dataclass(frozen=True)
class Pixels:
    """Images of one size in memory: uint8 (N, C, H, W), with their targets (N, ...), such as class numbers (N,).

    Maps of classes (N, H, W) are a `Mask`, which is moved like its images.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, Any]:
        """One sample, grey and RGB images as PIL images like torchvision's own datasets."""
        image = self.images[index]
        picture = functional.to_pil_image(image) if image.shape[0] in (1, 3) else image
        label = self.labels[index]
        if isinstance(self.labels, Mask):
            return picture, Mask(label)
        return picture, label if label.dim() or label.is_floating_point() else int(label)


@dataclass(frozen=True)
class Source:
    """The training or the test part of a dataset.

    Attributes:
        items: the images and their classes.
        num_classes: None if the dataset does not know it.
        fingerprint: identifies the content, if the user's dataset has such a method.
        classes: their names, if the dataset has names.
        place: the folder it was read from, if it is not below the folder of datasets.
    """

    items: Pixels | Items
    num_classes: int | None = None
    fingerprint: Callable[[], object] | None = None
    classes: tuple[str, ...] = ()
    place: Path | None = None


def pack(items: Items) -> Pixels | None:
    """Read small uint8 images of one size into one tensor; None if the items are something else.

    Every item is read once, so augmentation must be in the transforms, not in the dataset.

    Raises: DataError: items cannot be read, or are no samples.
    """
    if len(items) == 0:
        return None
    samples = readable(items)
    first, first_label = next(samples)
    pixels = _as_uint8(first)
    if pixels is None or not fits_in_memory(len(items), tuple(pixels.shape)):
        return None
    images = torch.empty((len(items), *pixels.shape), dtype=torch.uint8)
    labels: list[Tensor] = []
    for i, (image, label) in enumerate(chain([(first, first_label)], samples)):
        pixels, target = _as_uint8(image), as_numbers(label)
        if pixels is None or pixels.shape != images.shape[1:] or target is None:
            return None
        images[i] = pixels
        labels.append(target)
    if len({(label.shape, label.dtype) for label in labels}) > 1:
        return None
    stacked = torch.stack(labels)
    return Pixels(images, Mask(stacked) if isinstance(first_label, Mask) else stacked)


def readable(items: Items) -> Iterator[tuple[object, Any]]:
    """The samples that can be read.

    Raises: DataError: at the end, about the others; earlier, about an item that is no sample.
    """
    failures: list[str] = []
    for i in range(len(items)):
        try:
            item = items[i]
        except DataError as error:
            failures.append(str(error))
        else:
            yield as_pair(f"sample {i}", item)
    if failures:
        raise DataError(first_few(failures))


@dataclass(frozen=True)
class _Some:
    """Some items of others."""

    items: Items
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[object, Any]:
        return self.items[self.indices[index]]


def some_of(source: Source, most: int, name: str) -> Source:
    """At most so many samples of a part, in their order: the same ones in every run. `name` is the dataset's."""
    items = source.items
    if len(items) <= most:
        return source
    chosen = torch.randperm(len(items), generator=generator("some", name))[:most].sort().values
    if isinstance(items, Pixels):
        labels = items.labels[chosen]
        made = Mask(labels) if isinstance(items.labels, Mask) else labels
        return replace(source, items=Pixels(items.images[chosen], made))
    return replace(source, items=_Some(items, chosen.tolist()))


def fits_in_memory(num_images: int, shape: tuple[int, ...]) -> bool:
    """Whether uint8 images of shape (C, H, W) are kept in memory."""
    return max(shape[-2:]) <= MAX_SIDE and num_images * shape[0] * shape[1] * shape[2] <= MAX_BYTES


def check_settings(dataset: str, settings: Mapping[str, object], known: tuple[str, ...]) -> None:
    """Check the names of a dataset's settings.

    Raises: ConfigError: names the unknown ones, with a suggestion.
    """
    have = f"It has {', '.join(known)}." if known else "It has no settings."
    problems = [
        f"settings.{key}: {dataset} has no such setting.{suggestion(key, known)} {have}"
        for key in settings
        if key not in known
    ]
    if problems:
        raise ConfigError(problems)


def _as_uint8(image: object) -> Tensor | None:
    if isinstance(image, Image.Image) and image.mode in ("L", "RGB"):
        pixels: Tensor = functional.pil_to_tensor(image)
        return pixels
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3:
        return image
    return None
