"""Snow, frost, fog and spatter: functions of an image (H, W, C) in [0, 1], its constants and random numbers."""

import numpy as np
from scipy import ndimage

from experiment.datasets.corruptions.constants import Level
from experiment.datasets.corruptions.textures import Floats, gaussian_blur, grey, motion_blur, plasma, tint, zoomed

# Mean colour and standard deviation of the reference's five photographs, two of which are the same.
_FROSTS = (
    (0.30, 0.58, 0.65, 0.07), (0.79, 0.81, 0.84, 0.08), (0.79, 0.81, 0.84, 0.08), (0.54, 0.60, 0.65, 0.11),
    (0.44, 0.48, 0.53, 0.16),
)  # fmt: skip
_ROUGHNESS = 1.2  # decay of the fractal: neighbouring pixels correlate by about 0.9, as in the photographs
_WATER, _MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
_FAR = 20  # pixels: distances to the edge of a drop are cut off here
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def fog(x: Floats, c: Level, rng: np.random.Generator) -> Floats:
    """Adds a fractal cloud and scales back to the image's largest value."""
    brightest = x.max()
    cloud = plasma((x.shape[0], x.shape[1]), c[1], rng)[..., None]
    return np.asarray((x + c[0] * cloud) * (brightest / (brightest + c[0])), np.float32)


def frost(x: Floats, c: Level, rng: np.random.Generator) -> Floats:
    """Adds a layer of frost.

    Differs: the reference's layer is cut out of photographs. This one is a fractal with the mean colour and the
    standard deviation of one of them.
    """
    *colour, deviation = _FROSTS[rng.integers(len(_FROSTS))]
    texture = plasma((x.shape[0], x.shape[1]), _ROUGHNESS, rng)[..., None]
    texture = (texture - texture.mean()) * np.float32(deviation / max(float(texture.std()), 1e-9))
    return np.asarray(c[0] * x + c[1] * np.clip(tint(colour, x.shape[2]) + texture, 0, 1), np.float32)


def snow(x: Floats, c: Level, rng: np.random.Generator) -> Floats:
    """Whitens the image and adds falling flakes: thresholded noise, blurred along their way."""
    mean, deviation, zoom, threshold, radius, sigma, weight = c
    flakes = rng.normal(mean, deviation, (*x.shape[:2], 1)).astype(np.float32)
    flakes = zoomed(flakes, zoom)
    flakes = np.clip(np.where(flakes < threshold, np.float32(0), flakes), 0, 1)
    flakes = motion_blur(flakes, radius, sigma, rng.uniform(-135, -45))
    whitened = weight * x + (1 - weight) * np.maximum(x, grey(x) * 1.5 + 0.5)
    return np.asarray(whitened + flakes + np.rot90(flakes, 2), np.float32)


def spatter(x: Floats, c: Level, rng: np.random.Generator) -> Floats:
    """Drops of water, or at high severities of mud, where blurred noise exceeds a threshold.

    Differs: the edges of water drops are the inner boundaries of the thresholded noise instead of Canny's.
    """
    mean, deviation, sigma, threshold, strength, mud = c
    liquid = gaussian_blur(rng.normal(mean, deviation, x.shape[:2]).astype(np.float32), sigma)
    inside = liquid >= threshold
    if mud:
        cover = gaussian_blur(inside.astype(np.float32), strength)[..., None]
        cover = np.where(cover < 0.8, np.float32(0), cover)
        return x * (1 - cover) + cover * tint(_MUD, x.shape[2])
    drops = np.where(inside, np.clip(liquid, 0, 1), np.float32(0)) * _relief(inside)
    return x + (drops * np.float32(strength / max(float(drops.max()), 1e-9)))[..., None] * tint(_WATER, x.shape[2])


def _relief(inside: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    """Light on drops: the equalised distance to their edges, embossed and smoothed."""
    edges = inside & ~ndimage.binary_erosion(inside, border_value=1)
    if not edges.any():
        return np.ones(inside.shape, np.float32)
    distance = np.minimum(ndimage.distance_transform_edt(~edges), _FAR)
    level = ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.uint8)
    counts = np.bincount(level.ravel(), minlength=256)
    below, first = counts.cumsum(), counts[counts > 0][0]
    equalised = (below - first) * (255 / max(inside.size - first, 1))
    lit = np.clip(ndimage.correlate(np.rint(equalised[level]), _EMBOSS, mode="mirror"), 0, 255)
    smooth: Floats = ndimage.uniform_filter(lit, 3, mode="mirror").astype(np.float32)
    return smooth
