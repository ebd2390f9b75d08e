"""What several corruptions are made of: random fields, blurs and zooms of images (H, W, C) in [0, 1]."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch.nn import functional

Floats = NDArray[np.float32]


def plasma(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> Floats:
    """A fractal field (H, W) in [0, 1] by midpoint displacement (diamond-square) on a torus.

    The resolution doubles until it covers the image; displacements shrink by decay^2 every time.
    """
    field, amplitude = np.zeros((1, 1), np.float32), 1.0

    def displaced(sum_of_four: Floats) -> Floats:
        return sum_of_four / 4 + np.float32(amplitude) * rng.uniform(-1, 1, sum_of_four.shape).astype(np.float32)

    while len(field) < max(shape):
        right, below = np.roll(field, -1, 1), np.roll(field, -1, 0)
        centre = displaced(field + right + below + np.roll(below, -1, 1))
        fine = np.empty((2 * len(field), 2 * len(field)), np.float32)
        fine[::2, ::2], fine[1::2, 1::2] = field, centre
        fine[::2, 1::2] = displaced(field + right + centre + np.roll(centre, 1, 0))
        fine[1::2, ::2] = displaced(field + below + centre + np.roll(centre, 1, 1))
        field, amplitude = fine, amplitude / decay**2
    field = field - field.min()
    return np.asarray(field[: shape[0], : shape[1]] / max(float(field.max()), 1e-12), np.float32)


def smooth_field(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> Floats:
    """Uniform noise in [-1, 1] under a Gaussian filter, reflected at the border, as a product in the DCT domain."""
    noise = rng.uniform(-1, 1, shape).astype(np.float32)
    spectrum = fft.dctn(noise, norm="ortho")
    for axis, size in enumerate(shape):
        gain = np.exp(-0.5 * (sigma * np.pi * np.arange(size, dtype=np.float32) / size) ** 2)
        spectrum *= gain[:, None] if axis == 0 else gain
    return np.asarray(fft.idctn(spectrum, norm="ortho"), np.float32)


def gaussian_blur(x: Floats, sigma: float) -> Floats:
    """A Gaussian filter of the rows and columns, cut off at four standard deviations."""
    sigmas = (sigma, sigma, *[0.0] * (x.ndim - 2))
    return np.asarray(ndimage.gaussian_filter(x, sigmas, mode="nearest", truncate=4), np.float32)


def motion_blur(x: Floats, radius: float, sigma: float, degrees: float) -> Floats:
    """Mean along a line that starts in the pixel, with the weights of half a Gaussian: ImageMagick's motion blur.

    The line has 2 * radius + 1 pixels, rounded to the grid; beyond the border lies the border's pixel.
    """
    steps = np.arange(int(2 * radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = np.deg2rad(degrees)
    rows, columns = (np.ceil(steps * side - 0.5).astype(int) for side in (np.sin(angle), np.cos(angle)))
    h, w = x.shape[:2]
    up, left = max(0, -rows.min()), max(0, -columns.min())
    sides = [(up, max(0, rows.max())), (left, max(0, columns.max()))]
    padded = np.pad(x, [*sides, *[(0, 0)] * (x.ndim - 2)], mode="edge")
    blurred = np.zeros_like(x)
    for weight, row, column in zip(weights.astype(np.float32), rows + up, columns + left, strict=True):
        if weight > 1e-4:
            blurred += weight * padded[row : row + h, column : column + w]
    return blurred


def zoomed(x: Floats, factor: float) -> Floats:
    """The centre of an image, enlarged bilinearly to its size."""
    h, w = x.shape[:2]
    inner = [int(np.ceil(side / factor)) for side in (h, w)]
    top, left = (h - inner[0]) // 2, (w - inner[1]) // 2
    centre = torch.from_numpy(np.ascontiguousarray(x[top : top + inner[0], left : left + inner[1]].transpose(2, 0, 1)))
    size = [max(round(part * factor), side) for part, side in zip(inner, (h, w), strict=True)]
    large = functional.interpolate(centre[None], size=size, mode="bilinear", align_corners=True)[0]
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return np.asarray(large[:, top : top + h, left : left + w].permute(1, 2, 0), np.float32)


def grey(x: Floats) -> Floats:
    """The luminance (H, W, 1) of a grey or RGB image."""
    return x if x.shape[2] == 1 else np.asarray(x @ np.array([0.299, 0.587, 0.114])[:, None], np.float32)


def tint(colour: Sequence[float], channels: int) -> Floats:
    """Red, green and blue in [0, 1] as an array of one or three channels."""
    rgb = np.array([[colour]], np.float32)
    return rgb if channels == 3 else grey(rgb)
