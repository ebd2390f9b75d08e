"""A small problem that a small network learns in a second."""

from collections.abc import Callable, Iterator
from typing import Any

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


class Watched:
    """Images that call a function after each training batch."""

    def __init__(self, images: MemoryImages, after_batch: Callable[[int], None]) -> None:
        self._images, self._after_batch = images, after_batch

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, batch_size: int, **more: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in self._images.batches(batch_size, **more):
            yield x, y
            self._after_batch(len(y))


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def watched() -> type[Watched]:
    return Watched


@pytest.fixture
def killed(images: MemoryImages) -> Callable[..., Any]:
    """Images whose use raises an error after a number of batches, and this error."""

    def make(batches: int, error: type[BaseException] = Killed) -> tuple[Watched, type[BaseException]]:
        left = batches

        def count(_: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise error

        return Watched(images, count), error

    return make


@pytest.fixture
def images() -> MemoryImages:
    return make_images(90)


@pytest.fixture
def valid() -> MemoryImages:
    return make_images(30, "valid")


@pytest.fixture
def network() -> nn.Sequential:
    return make_network()
