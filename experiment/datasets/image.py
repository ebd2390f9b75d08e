"""What the rest of the package sees of a dataset: batches of images on the device, in three parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from experiment.streams import Part

Batch = tuple[Tensor, Tensor]
Step = tuple[str, Mapping[str, object]]

EVALUATION: tuple[Part, ...] = ("evaluation",)  # where a test transform is random, it is so in the same way every time


@dataclass(frozen=True)
class Transforms:
    """Image transforms by their torchvision names, each with its arguments.

    Attributes:
        train: for training images (augmentation). test: for all others. final: after either of them.
    """

    train: tuple[Step, ...] = ()
    test: tuple[Step, ...] = ()
    final: tuple[Step, ...] = (("ToTensor", {}),)


class Images(Protocol):
    """Images of one part of a dataset, ready for a network."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image after the test transforms."""

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, *, stream: tuple[Part, ...] | None, channels_last: bool = False
    ) -> Iterator[Batch]:
        """All images once: x (N, C, H, W) float and y (N,) int64, both on the device.

        Args:
            stream: for training: order and augmentation drawn from generators of this stream, each image its own crop
                and flip, a last batch of a single image left out (BatchNorm cannot train on it). None: fixed order,
                test transforms, every image.
            channels_last: memory format of x.
        """

    def take(self, indices: Tensor) -> Batch:
        """The images at `indices` (int64, into the fixed order), with test transforms."""

    def first(self, n: int) -> Batch:
        """The first `n` images of the fixed order (all, where there are fewer), with test transforms."""


@dataclass(frozen=True)
class Splits:
    """A dataset: nine tenths of its training part, the tenth held out for decisions, and its test part.

    `input_shape` is (channels, height, width) after the transforms.
    """

    train: Images
    valid: Images
    test: Images
    num_classes: int
    input_shape: tuple[int, int, int]


def count_batches(num_images: int, batch_size: int, *, training: bool) -> int:
    """How many batches `Images.batches` yields: the last may be smaller; a single image is left out in training."""
    full, rest = divmod(num_images, batch_size)
    return full + (rest > 1 if training else rest > 0)
