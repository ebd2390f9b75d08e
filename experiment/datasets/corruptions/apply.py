"""Corrupt images, and whole parts of datasets, seeded per image."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiment.datasets.corruptions import SEVERITIES, pixelwise, weather
from experiment.datasets.corruptions.constants import Level, level_of
from experiment.datasets.corruptions.textures import Floats
from experiment.datasets.raw_images import Items, Pixels, Source
from experiment.errors import DataError
from experiment.inputs import in_words
from experiment.random_streams import Part, seed_of

_FUNCTIONS: dict[str, Callable[[Floats, Level, np.random.Generator], Floats]] = {
    "gaussian_noise": pixelwise.gaussian_noise, "shot_noise": pixelwise.shot_noise,
    "impulse_noise": pixelwise.impulse_noise, "defocus_blur": pixelwise.defocus_blur,
    "glass_blur": pixelwise.glass_blur, "motion_blur": pixelwise.motion, "zoom_blur": pixelwise.zoom_blur,
    "snow": weather.snow, "frost": weather.frost, "fog": weather.fog, "brightness": pixelwise.brightness,
    "contrast": pixelwise.contrast, "elastic_transform": pixelwise.elastic_transform, "pixelate": pixelwise.pixelate,
    "jpeg_compression": pixelwise.jpeg_compression, "speckle_noise": pixelwise.speckle_noise,
    "gaussian_blur": pixelwise.blur, "spatter": weather.spatter, "saturate": pixelwise.saturate,
}  # fmt: skip


def corrupt(image: NDArray[np.uint8], corruption: str, severity: int, seed: int) -> NDArray[np.uint8]:
    """Corrupt one image.

    Args:
        image: uint8 (H, W, C), C = 1 or 3, of any size.
        corruption: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of all random numbers; the same seed gives the same image.
    Returns: uint8 (H, W, C).
    Raises: DataError: the image is neither grey nor RGB, or the corruption has no effect on grey images.

    Source: Hendrycks, Dietterich 2019, https://arxiv.org/abs/1903.12261. Differs: values are rounded, not truncated;
    a length in pixels is not scaled with the image; frost is synthesized.

    Example:
        >>> corrupt(np.zeros((32, 32, 3), np.uint8), "brightness", 5, seed=0).max()
        76
    """
    if image.shape[2] not in (1, 3):
        raise DataError(f"corruptions apply to grey and RGB images. Got {image.shape[2]} channels.")
    if corruption == "saturate" and image.shape[2] == 1:
        raise DataError("saturate has no effect on grey images. Choose another corruption.")
    level = level_of(corruption, severity, min(image.shape[:2]))
    x = _FUNCTIONS[corruption](image.astype(np.float32) / np.float32(255), level, np.random.default_rng(seed))
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def corrupt_input(image: object, corruption: str, severity: int, seed: int) -> object:
    """Corrupt a PIL image or a uint8 tensor (C, H, W), which keeps its type.

    Raises: as `corrupt`; DataError also if it is something else.
    """
    if isinstance(image, Image.Image):
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        made = corrupt(pixels if pixels.ndim == 3 else pixels[..., None], corruption, severity, seed)
        return Image.fromarray(made if pixels.ndim == 3 else made[..., 0])
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3:
        made = corrupt(image.permute(1, 2, 0).numpy(), corruption, severity, seed)
        return torch.from_numpy(made).permute(2, 0, 1).contiguous()
    raise DataError(f"corruptions apply to PIL images and uint8 tensors (C, H, W). Got {in_words(image)}.")


@dataclass(frozen=True)
class CorruptedItems:
    """Items whose images are corrupted as they are read, once per severity, one severity after the other."""

    items: Items
    corruption: str
    severities: tuple[int, ...]
    part: Part

    def __len__(self) -> int:
        return len(self.severities) * len(self.items)

    def __getitem__(self, index: int) -> tuple[object, object]:
        which, index = divmod(index, len(self.items))
        image, target = self.items[index]
        seed = seed_of("corruption", self.corruption, self.part, index)
        return corrupt_input(image, self.corruption, self.severities[which], seed), target


def corrupted(source: Source, corruption: str, severity: int | None, part: Part, *, lazily: bool = False) -> Source:
    """A part of a dataset with corrupted images and unchanged targets.

    Args:
        severity: 1 to 5, or None for all five, one after the other.
        part: enters the seed of every image, together with its index and the corruption.
        lazily: corrupt images as they are read, even if they are in memory.
    Raises: as `corrupt_input`, if the images are in memory; other images raise when they are read.
    """
    severities = SEVERITIES if severity is None else (severity,)
    items = CorruptedItems(source.items, corruption, severities, part)
    if lazily or not isinstance(source.items, Pixels):
        return replace(source, items=items)
    images = source.items.images.repeat(len(severities), 1, 1, 1)
    for i in range(len(images)):
        seed = seed_of("corruption", corruption, part, i % len(source.items))
        images[i] = corrupt_input(images[i], corruption, severities[i // len(source.items)], seed)  # type: ignore[assignment]
    labels = source.items.labels
    return replace(source, items=Pixels(images, labels.repeat(len(severities), *[1] * (labels.dim() - 1))))
