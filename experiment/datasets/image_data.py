"""A dataset as the rest of the package uses it: three parts that give batches on the device."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from experiment.inputs import Inputs
from experiment.random_streams import Part, generator
from experiment.registry import InputForm, InputShape

Batch = tuple[Inputs, Tensor]
Step = tuple[str, Mapping[str, object]]
Stream = tuple[Part, ...] | None  # of order and augmentation; None: fixed order, test transforms
Share = tuple[int, int]  # (K, N): process K of N that work on the same images

EVALUATION: tuple[Part, ...] = ("evaluation",)  # seeds random test transforms, the same way every time


@dataclass(frozen=True)
class Transforms:
    """Image transforms by their torchvision names, each with its arguments.

    Attributes:
        train: for training images (augmentation).
        test: for validation and test images.
        final: applied after `train` or `test`.
    """

    train: tuple[Step, ...] = ()
    test: tuple[Step, ...] = ()
    final: tuple[Step, ...] = (("ToTensor", {}),)


class Images(Protocol):
    """Images of one part of a dataset, ready for a network."""

    @property
    def input_shape(self) -> InputForm:
        """The shape of one input after the test transforms, (channels, height, width) of an image, or several."""

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        """All images once: x (N, C, H, W) float and targets y (N, ...), both on the device.

        Args:
            stream: for training, the random stream of order and augmentation. A last batch of a single image is
                skipped, since BatchNorm cannot train on it. None for evaluation: every image in fixed order, with test
                transforms.
            channels_last: memory format of x.
            share: yield only this process's part (see `share_of`) of the same batches.
        """

    def take(self, indices: Tensor) -> Batch:
        """The images at `indices` (int64, positions in the fixed order), with test transforms."""

    def first(self, n: int) -> Batch:
        """The first `n` images of the fixed order, or all if there are fewer, with test transforms."""


@dataclass(frozen=True)
class Splits:
    """A dataset: its training part without the validation images, these images, and its test part.

    `input_shape` is the shape of one input after the transforms, such as (channels, height, width).
    """

    train: Images
    valid: Images
    test: Images
    num_classes: int
    input_shape: InputForm

    @property
    def example(self) -> Inputs | None:
        """The first two training inputs if they consist of several tensors, whose values may depend on each other."""
        return None if isinstance(self.input_shape, InputShape) else self.train.first(2)[0]


def count_batches(num_images: int, batch_size: int, *, training: bool) -> int:
    """The number of batches that `Images.batches` yields. Training skips a last batch of a single image."""
    full, rest = divmod(num_images, batch_size)
    return full + (rest > 1 if training else rest > 0)


def epoch_order(num_images: int, batch_size: int, stream: Stream, share: Share | None) -> tuple[Tensor, Tensor, int]:
    """The order of images in one pass (see `Images.batches`).

    Returns: positions of this process's images in the fixed order; the place of each in this pass; and the number of
        images per batch of this process.
    """
    training = stream is not None
    order = torch.randperm(num_images, generator=generator(*stream, "order")) if stream else torch.arange(num_images)
    places = torch.arange(min(num_images, batch_size * count_batches(num_images, batch_size, training=training)))
    if share is not None:
        places, batch_size = share_of(len(places), batch_size, share, training=training)
    return order[places], places, batch_size


def share_of(num_images: int, batch_size: int, share: Share, *, training: bool) -> tuple[Tensor, int]:
    """The part of the images that one of several processes computes.

    In training, every process takes its part of each batch. In evaluation, processes take whole batches in turn, so
    that the loss of a batch is the same as in one process.

    Returns: positions in the order of the images, and the number of images per batch of this process.
    """
    process, processes = share
    positions = torch.arange(num_images)
    turn = positions % batch_size if training else positions // batch_size
    return positions[turn % processes == process], share_size(batch_size, share) if training else batch_size


def share_size(num_images: int, share: Share) -> int:
    """The number of images of a batch that one of several processes computes."""
    process, processes = share
    return (num_images - process + processes - 1) // processes
