"""Where images come from before any transform: one tensor of pixels in memory, or items read one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from experiment.datasets.check_samples import as_pair
from experiment.errors import ConfigError, DataError
from experiment.registry import suggestion

MAX_SIDE = 64  # pixels: what is larger is decoded when needed
MAX_BYTES = 1_000_000_000


class Items(Protocol):
    """A map-style dataset: (PIL image, uint8 tensor CHW or float tensor CHW) and the number of its class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[object, int]: ...


@dataclass(frozen=True)
class Pixels:
    """Images of one size in memory: uint8 (N, C, H, W), with their labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        """As `Items`: a PIL image where there is one of that many channels, as torchvision's own datasets give it."""
        image = self.images[index]
        picture = functional.to_pil_image(image) if image.shape[0] in (1, 3) else image
        return picture, int(self.labels[index])


@dataclass(frozen=True)
class Source:
    """The training or the test part of a dataset.

    Attributes:
        num_classes: None where the dataset does not say.
        fingerprint: says what its content is, where the dataset can say so itself; two contents, two texts.
        classes: their names, where the dataset has some.
        place: the folder it was read from, where that is not simply the folder of datasets.
    """

    items: Pixels | Items
    num_classes: int | None = None
    fingerprint: Callable[[], object] | None = None
    classes: tuple[str, ...] = ()
    place: Path | None = None


def pack(items: Items) -> Pixels | None:
    """Read small uint8 images of one size into one tensor; None where they are not that.

    Every item is read once: chance in it is frozen, so augmentation belongs in the transforms.
    """
    if len(items) == 0:
        return None
    first, _ = as_pair("sample 0", items[0])
    pixels = _as_uint8(first)
    if pixels is None or not fits_in_memory(len(items), tuple(pixels.shape)):
        return None
    images = torch.empty((len(items), *pixels.shape), dtype=torch.uint8)
    labels = torch.empty(len(items), dtype=torch.int64)
    for i in range(len(items)):
        image, label = as_pair(f"sample {i}", items[i])
        pixels = _as_uint8(image)
        if pixels is None or pixels.shape != images.shape[1:]:
            return None
        images[i], labels[i] = pixels, label
    return Pixels(images, labels)


def fits_in_memory(num_images: int, shape: tuple[int, ...]) -> bool:
    """Whether uint8 images of the shape (C, H, W) are kept in memory as a whole."""
    return max(shape[-2:]) <= MAX_SIDE and num_images * shape[0] * shape[1] * shape[2] <= MAX_BYTES


def check_settings(dataset: str, settings: Mapping[str, object], known: tuple[str, ...]) -> None:
    """Refuse settings that the dataset does not have.

    Raises: ConfigError: names them, with the near miss.
    """
    have = f"It has {', '.join(known)}." if known else "It has no settings."
    problems = [
        f"settings.{key}: {dataset} has no such setting.{suggestion(key, known)} {have}"
        for key in settings
        if key not in known
    ]
    if problems:
        raise ConfigError(problems)


def check_labels(where: str, labels: Tensor, num_classes: int) -> None:
    """Refuse labels outside 0 to num_classes - 1.

    Raises: DataError.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise DataError(
            f"{where}: class numbers from {int(labels.min())} to {int(labels.max())}; with network.outputSize "
            f"{num_classes} they must lie in 0 to {num_classes - 1}. Number the classes from 0, or set outputSize."
        )


def _as_uint8(image: object) -> Tensor | None:
    if isinstance(image, Image.Image) and image.mode in ("L", "RGB"):
        pixels: Tensor = functional.pil_to_tensor(image)
        return pixels
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3:
        return image
    return None
