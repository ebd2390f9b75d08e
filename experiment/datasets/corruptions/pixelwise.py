"""Noise, blur and digital corruptions: functions of an image (H, W, C) in [0, 1], its constants and random numbers."""

import io
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage, signal

from experiment.datasets.corruptions.constants import Level
from experiment.datasets.corruptions.textures import Floats, gaussian_blur, motion_blur, smooth_field, zoomed

Random = np.random.Generator


def gaussian_noise(x: Floats, c: Level, rng: Random) -> Floats:
    return x + np.float32(c[0]) * rng.standard_normal(x.shape, np.float32)


def shot_noise(x: Floats, c: Level, rng: Random) -> Floats:
    """Poisson counts of x times the number of photons at white."""
    return (rng.poisson(x * c[0]) / c[0]).astype(np.float32)


def impulse_noise(x: Floats, c: Level, rng: Random) -> Floats:
    """A share of the values becomes 0 or 1, each channel by itself."""
    drawn = rng.random(x.shape, np.float32)
    return np.where(drawn < c[0] / 2, np.float32(0), np.where(drawn < c[0], np.float32(1), x))


def speckle_noise(x: Floats, c: Level, rng: Random) -> Floats:
    return x + x * np.float32(c[0]) * rng.standard_normal(x.shape, np.float32)


def blur(x: Floats, c: Level, rng: Random) -> Floats:
    return gaussian_blur(x, c[0])


def defocus_blur(x: Floats, c: Level, rng: Random) -> Floats:
    """Convolution with a disk whose edge is softened by a small Gaussian."""
    kernel = _disk(*c)
    reach = len(kernel) // 2
    padded = x
    for axis in (0, 1):  # reflected about the border's pixels, several times in images smaller than the disk
        width = [(0, 0)] * 3
        width[axis] = (reach, reach)
        padded = np.pad(padded, width, mode="reflect" if x.shape[axis] > 1 else "edge")
    return np.asarray(signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)), np.float32)


@cache
def _disk(radius: float, soft: float) -> Floats:
    reach = int(radius) + 1 + (1 if radius <= 8 else 2)
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    edge = np.exp(-(taps**2) / (2 * soft**2))
    kernel = signal.convolve2d(disk, np.outer(edge, edge), mode="same")
    return np.asarray(kernel / kernel.sum(), np.float32)


def glass_blur(x: Floats, c: Level, rng: Random) -> Floats:
    """Pixels, from the last to the first, take the value of a random neighbour; blurred before and after."""
    sigma, most, times = c[0], int(c[1]), int(c[2])
    h, w = x.shape[:2]
    blurred = gaussian_blur(x, sigma)
    rows, columns = np.meshgrid(np.arange(h - most, most, -1), np.arange(w - most, most, -1), indexing="ij")
    source = list(range(h * w))
    for _ in range(times):
        down, right = rng.integers(-most, most, (2, *rows.shape))
        other = np.clip(rows + down, 0, h - 1) * w + np.clip(columns + right, 0, w - 1)
        for place, neighbour in zip((rows * w + columns).ravel().tolist(), other.ravel().tolist(), strict=True):
            source[place] = source[neighbour]
    return gaussian_blur(blurred.reshape(h * w, -1)[source].reshape(x.shape), sigma)


def motion(x: Floats, c: Level, rng: Random) -> Floats:
    return motion_blur(x, c[0], c[1], rng.uniform(-45, 45))


def zoom_blur(x: Floats, c: Level, rng: Random) -> Floats:
    """The mean of the image and its zooms."""
    factors = np.arange(1, *c)
    total = x.copy()
    for factor in factors:
        total += zoomed(x, float(factor))
    return np.asarray(total / (len(factors) + 1), np.float32)


def brightness(x: Floats, c: Level, rng: Random) -> Floats:
    """Adds to the value of the HSV colour; hue and saturation stay."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + np.float32(c[0]), 1)
    brighter_by = brighter / np.maximum(value, 1e-9)
    return np.asarray(np.where(value > 0, x * brighter_by, brighter), np.float32)


def contrast(x: Floats, c: Level, rng: Random) -> Floats:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * c[0] + mean, np.float32)


def saturate(x: Floats, c: Level, rng: Random) -> Floats:
    """Multiplies and raises the saturation of the HSV colour; grey pixels have hue 0, red."""
    value = x.max(axis=2, keepdims=True)
    range_ = value - x.min(axis=2, keepdims=True)
    saturation = range_ / np.maximum(value, 1e-9)
    new = np.clip(saturation * c[0] + c[1], 0, 1)
    distance = np.where(range_ > 0, (value - x) / np.maximum(range_, 1e-9), np.array([0, 1, 1]))
    return np.asarray(value * (1 - distance * new), np.float32)


def jpeg_compression(x: Floats, c: Level, rng: Random) -> Floats:
    packed = io.BytesIO()
    _picture(x).save(packed, "JPEG", quality=int(c[0]))
    return _floats(Image.open(packed))


def pixelate(x: Floats, c: Level, rng: Random) -> Floats:
    picture = _picture(x)
    small = (max(1, int(picture.width * c[0])), max(1, int(picture.height * c[0])))
    return _floats(picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX))


def elastic_transform(x: Floats, c: Level, rng: Random) -> Floats:
    """A random affine map by three displaced points, and a smooth random displacement of every pixel."""
    h, w = x.shape[:2]
    strength, smoothness, corners = (min(h, w) * share for share in c)
    centre, reach = np.array([h // 2, w // 2]), min(h, w) // 3
    points = np.array([[1, 1], [1, -1], [-1, -1]]) * reach + centre
    moved = points + rng.uniform(-corners, corners, points.shape)
    inverse, *_ = np.linalg.lstsq(np.column_stack([moved, np.ones(3)]), points.astype(float), rcond=None)
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    if strength:
        rows = rows + strength * smooth_field((h, w), smoothness, rng)
        columns = columns + strength * smooth_field((h, w), smoothness, rng)
    places = np.stack([rows, columns, np.ones_like(rows)], axis=2) @ inverse
    at = np.moveaxis(places, 2, 0)
    channels = [ndimage.map_coordinates(x[..., i], at, order=1, mode="mirror") for i in range(x.shape[2])]
    return np.stack(channels, axis=2)


def _picture(x: Floats) -> Image.Image:
    pixels = np.rint(x * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _floats(picture: Image.Image) -> Floats:
    pixels = np.asarray(picture, np.float32) / np.float32(255)
    return pixels[..., None] if pixels.ndim == 2 else pixels
