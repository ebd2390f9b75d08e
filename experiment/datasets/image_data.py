"""What the rest of the package sees of a dataset: batches of images on the device, in three parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from experiment.random_streams import Part
from experiment.registry import InputShape

Batch = tuple[Tensor, Tensor]
Step = tuple[str, Mapping[str, object]]
Share = tuple[int, int]  # (K, N): process K of N that work on the same images

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
    def input_shape(self) -> InputShape:
        """The shape of one input after the test transforms: (channels, height, width) of an image."""

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        stream: tuple[Part, ...] | None,
        channels_last: bool = False,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        """All images once: x (N, C, H, W) float and y (N,) int64, both on the device.

        Args:
            stream: for training: order and augmentation drawn from generators of this stream, each image its own crop
                and flip, a last batch of a single image left out (BatchNorm cannot train on it). None: fixed order,
                test transforms, every image.
            channels_last: memory format of x.
            share: only what falls to this process (see `share_of`), the same images as they come without it.
        """

    def take(self, indices: Tensor) -> Batch:
        """The images at `indices` (int64, into the fixed order), with test transforms."""

    def first(self, n: int) -> Batch:
        """The first `n` images of the fixed order (all, where there are fewer), with test transforms."""


@dataclass(frozen=True)
class Splits:
    """A dataset: nine tenths of its training part, the tenth held out for decisions, and its test part.

    `input_shape` is that of one input after the transforms, such as (channels, height, width).
    """

    train: Images
    valid: Images
    test: Images
    num_classes: int
    input_shape: InputShape


def count_batches(num_images: int, batch_size: int, *, training: bool) -> int:
    """How many batches `Images.batches` yields: the last may be smaller; a single image is left out in training."""
    full, rest = divmod(num_images, batch_size)
    return full + (rest > 1 if training else rest > 0)


def share_of(num_images: int, batch_size: int, share: Share, *, training: bool) -> tuple[Tensor, int]:
    """What falls to one of several processes: positions in the order of the images, and how many of them make a batch.

    In training every process takes its part of each batch; otherwise they take whole batches in turn, so that a batch
    has the loss that it has in one process.
    """
    process, processes = share
    positions = torch.arange(num_images)
    turn = positions % batch_size if training else positions // batch_size
    return positions[turn % processes == process], share_size(batch_size, share) if training else batch_size


def share_size(num_images: int, share: Share) -> int:
    """How many images of a batch of so many fall to one of several processes."""
    process, processes = share
    return (num_images - process + processes - 1) // processes
