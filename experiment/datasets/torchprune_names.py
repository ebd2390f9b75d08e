"""torchprune's names of corrupted and relabelled datasets: what they stand for. Torch-free.

Source: https://github.com/lucaslie/torchprune, src/torchprune/torchprune/util/datasets
"""

import re
from typing import NamedTuple

SHORT = {
    "Brightness": "brightness", "Contrast": "contrast", "Defocus": "defocus_blur", "Elastic": "elastic_transform",
    "Fog": "fog", "Frost": "frost", "Blur": "gaussian_blur", "Gauss": "gaussian_noise", "Glass": "glass_blur",
    "Impulse": "impulse_noise", "Jpeg": "jpeg_compression", "Motion": "motion_blur", "Pixel": "pixelate",
    "Sat": "saturate", "Shot": "shot_noise", "Snow": "snow", "Spatter": "spatter", "Speckle": "speckle_noise",
    "Zoom": "zoom_blur",
}  # fmt: skip
MIXTURES = {
    "CIFAR10_C_Mix1": ("Contrast", "Elastic", "Blur", "Impulse", "Motion", "Pixel", "Shot", "Snow", "Zoom"),
    "CIFAR10_C_Mix2": (
        "Brightness", "Defocus", "Fog", "Frost", "Gauss", "Glass", "Jpeg", "Sat", "Spatter", "Speckle",
    ),
}  # fmt: skip
BASES = ("CIFAR10", "ImageNet", "VOCSegmentation2011", "VOCSegmentation2012")
_CORRUPTED = re.compile(rf"({'|'.join(BASES)})_C_({'|'.join(SHORT)})(?:_([1-5]))?")
_RELABELLED = re.compile(r"CIFAR10Rand(\d|[1-9]\d|100)")


class Corrupted(NamedTuple):
    """A dataset, the corruption of its images, and its severity, None for all five."""

    base: str
    corruption: str
    severity: int | None


def corruption_in(name: str) -> Corrupted | None:
    """What a name such as `CIFAR10_C_Gauss_3` stands for, if it is one."""
    found = _CORRUPTED.fullmatch(name)
    if found is None:
        return None
    base, short, severity = found.groups()
    return Corrupted(base, SHORT[short], int(severity) if severity else None)


def is_relabelled(name: str) -> bool:
    """Whether a name is `CIFAR10Rand` with a percentage of random labels."""
    return _RELABELLED.fullmatch(name) is not None


def known_names() -> list[str]:
    """All names of corrupted datasets and torchprune's of relabelled ones, for suggestions."""
    severities = ("", *(f"_{severity}" for severity in range(1, 6)))
    names = [f"{base}_C_{short}{severity}" for base in BASES for short in SHORT for severity in severities]
    return [*names, *(f"CIFAR10Rand{percent}" for percent in range(0, 25, 5))]
