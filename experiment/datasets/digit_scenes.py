"""Scenes of scanned digits, to segment: real pen strokes that need no download, 64x64 grey images with a class a pixel.

A scene shows none to four of the 8x8 digits that scikit-learn ships, enlarged to 20 to 30 pixels and more or less
bright, each in its own quarter of an uneven, noisy ground. Pieces of strokes lie between them and belong to the
background. Class 0 is the background, class k + 1 the strokes of digit k. Digits of training scenes are training images
of `Digits`, those of test scenes its test images.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.tv_tensors import Mask

from experiment.datasets.digits import scans
from experiment.datasets.raw_images import Pixels, Source, check_settings
from experiment.random_streams import generator

SIDE = 64
SMALLEST, LARGEST = 20, 30  # pixels, sides of a digit
MOST_DIGITS, CLUTTER = 4, 6
INK = 0.4  # share of the darkest level from which a pixel belongs to the stroke
NUM_SCENES = {True: 1_500, False: 300}


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """1,500 training or 300 test scenes, always the same ones."""
    check_settings(name, settings, ())
    digits, labels = scans(train)
    draws = generator("digit scenes", "train" if train else "test")
    scenes = [_scene(digits.float(), labels, draws) for _ in range(NUM_SCENES[train])]
    images, maps = (torch.stack(parts) for parts in zip(*scenes, strict=True))
    return Source(Pixels(images.unsqueeze(1), Mask(maps)), 11, classes=("background", *map(str, range(10))))


def _scene(digits: Tensor, labels: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """One scene, uint8 (H, W), and its map, int64 (H, W), from digits (N, 8, 8) in [0, 1]."""
    corners = torch.rand((1, 1, 3, 3), generator=draws) * 0.4
    scene = interpolate(corners, size=(SIDE, SIDE), mode="bilinear", align_corners=True)[0, 0]
    classes = torch.zeros((SIDE, SIDE), dtype=torch.int64)
    for _ in range(_whole(0, CLUTTER, draws)):
        piece = digits[_whole(0, len(digits) - 1, draws)]
        top, left = _whole(0, 5, draws), _whole(0, 5, draws)
        _draw(scene, piece[top : top + 3, left : left + 3], _whole(5, 10, draws), draws, None)
    quarters = torch.randperm(4, generator=draws)[: _whole(0, MOST_DIGITS, draws)]
    for quarter in quarters.tolist():
        i = _whole(0, len(digits) - 1, draws)
        stroke, place = _draw(scene, digits[i], _whole(SMALLEST, LARGEST, draws), draws, divmod(quarter, 2))
        classes[place] = torch.where(stroke > INK, labels[i] + 1, classes[place])
    scene += 0.05 * torch.randn((SIDE, SIDE), generator=draws)
    return (scene * 255).round().clamp(0, 255).to(torch.uint8), classes


def _draw(
    scene: Tensor, ink: Tensor, side: int, draws: torch.Generator, quarter: tuple[int, int] | None
) -> tuple[Tensor, tuple[slice, slice]]:
    """Draw ink (H, W) into a random square of the scene, or of a quarter; returns the enlarged ink and the square."""
    large = interpolate(ink[None, None], size=(side, side), mode="bilinear")[0, 0]
    room = (SIDE if quarter is None else SIDE // 2) - side
    top, left = (_whole(0, room, draws) + SIDE // 2 * part for part in quarter or (0, 0))
    place = slice(top, top + side), slice(left, left + side)
    brightness = 0.6 + 0.4 * float(torch.rand((), generator=draws))
    scene[place] += large * (brightness - scene[place])
    return large, place


def _whole(low: int, high: int, draws: torch.Generator) -> int:
    """A whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=draws))
