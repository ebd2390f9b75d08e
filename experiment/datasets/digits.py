"""scikit-learn's 1,797 handwritten digits: real data that need no download, as 28x28 images like MNIST's.

Source: Alpaydin, Kaynak 1998, https://archive.ics.uci.edu/dataset/80 (its test part, which scikit-learn ships).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from experiment.datasets.raw_images import Pixels, Source, check_settings

SIDE = 28
TEST_EVERY = 5  # every fifth image of a class is a test image: 360 of 1,797


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """1,437 training or 360 test images; the split is stratified and fixed, whatever the seed."""
    check_settings(name, settings, ())
    levels, labels = scans(train)
    large = functional.interpolate(levels.unsqueeze(1) * 255, size=(SIDE, SIDE), mode="bilinear")
    return Source(Pixels(large.round().clamp(0, 255).to(torch.uint8), labels), 10)


def scans(train: bool) -> tuple[Tensor, Tensor]:
    """The 8x8 scans of the training or test part, in [0, 1], and their classes."""
    from sklearn.datasets import load_digits  # takes a second, for these datasets only

    data = load_digits()
    levels, labels = torch.from_numpy(data.images), torch.from_numpy(data.target).long()  # levels 0 to 16, 8x8
    by_class = torch.argsort(labels, stable=True)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[by_class[::TEST_EVERY]] = True
    chosen = ~is_test if train else is_test
    return levels[chosen] / 16, labels[chosen]
