"""Read image files, and convert images of any mode to 8 bits without clipping."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps
from torchvision.tv_tensors import Mask

from experiment.errors import DataError

Read = TypeVar("Read")

MAX_PIXELS = 178_956_970  # Pillow's own limit, also if a program lifts it: 537 MB as RGB

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # found by content; others start programs

_KEPT = ("L", "RGB", "LA", "RGBA")
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_AS_I = ("PNG", "PPM")  # formats without 32-bit pixels: Pillow decodes their 16 bits to mode I


def read_rgb(path: Path) -> Image.Image:
    """Read an image as upright 8-bit RGB, without transparency, as torchvision does.

    Raises: DataError: the file cannot be read.
    """
    return _read(path, _upright_rgb)


def read_class_map(path: Path) -> Mask:
    """Read a map of class numbers (H, W), the values or palette indices of an 8-bit PNG.

    Raises: DataError: the file cannot be read, or has another mode.
    """
    return _read(path, _class_numbers)


def _upright_rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # copies only what has to be turned
    return to_rgb(image)


def _class_numbers(image: Image.Image) -> Mask:
    if image.format != "PNG" or image.mode not in ("L", "P", "1"):
        raise ValueError(
            f"expected a grey or palette PNG with one class number a pixel. Got {image.format} of mode {image.mode}"
        )
    return Mask(np.array(image, dtype=np.uint8))


def _read(path: Path, convert: Callable[[Image.Image], Read]) -> Read:
    """Read an image file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a regular file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height} pixels"
                raise ValueError(f"it has {size}, more than {MAX_PIXELS:,}. Make it smaller")
            image.load()
            return convert(image)
    except Exception as error:  # decoders may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"{path} cannot be read as an image: {reason.rstrip('.')}. Replace or remove it.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Raises: ValueError: its range is unknown (see `to_eight_bits`).
    """
    image = to_eight_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """An image of any mode as L, RGB, LA or RGBA. 16-bit pixels are scaled from 0..65535, floats from 0..1.

    Raises: ValueError: 32-bit integers or floats outside 0..1, whose range is unknown.
    """
    if image.mode in _KEPT:
        return image
    if image.mode in _SIXTEEN or (image.mode == "I" and image.format in _SIXTEEN_AS_I):
        return _grey(np.asarray(image).astype(np.float64) / 65535)
    if image.mode == "I":
        raise ValueError("it has 32-bit integer pixels, whose range is unknown. Save it with 8 or 16 bits per pixel")
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"it has float pixels from {values.min():g} to {values.max():g}; expected 0 to 1. Scale them"
            )
        return _grey(values)
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Image.Image:
    """Values from 0 to 1 as an image of mode L."""
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))
