"""A small problem that a small network learns in a second."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiment.datasets.batch_transforms import compile_steps
from experiment.datasets.in_memory import MemoryImages, Prepared
from experiment.random_streams import generator, seeded


def make_images(count: int, name: str = "train", classes: int = 4) -> MemoryImages:
    """Images whose class is the brightest quarter."""
    labels = torch.randint(0, classes, (count,), generator=generator(name, "labels"))
    pixels = torch.randint(0, 120, (count, 1, 8, 8), dtype=torch.uint8, generator=generator(name, "pixels"))
    for i, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        pixels[i, :, top : top + 4, left : left + 4] += 120
    operations = compile_steps([("RandomCrop", {"size": 8, "padding": 1}), ("ToTensor", {})], (1, 8, 8))
    assert operations is not None
    return MemoryImages(Prepared(pixels, tuple(operations)), Prepared(pixels, ()), labels)


def make_network(seed: int = 0, classes: int = 4) -> nn.Sequential:
    with seeded("network", seed):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64, classes),
        )


@pytest.fixture
def images() -> MemoryImages:
    return make_images(90)


@pytest.fixture
def valid() -> MemoryImages:
    return make_images(30, "valid")


@pytest.fixture
def network() -> nn.Sequential:
    return make_network()
