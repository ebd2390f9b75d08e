"""What --new finds out about a dataset: from the registry where it knows everything, else by reading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Mask

from experiment.datasets import find_dataset
from experiment.datasets.check_samples import as_pair
from experiment.datasets.factories import load_own
from experiment.datasets.loading import Loader
from experiment.datasets.raw_images import Pixels
from experiment.datasets.token_windows import Windows
from experiment.errors import ConfigError, DataError
from experiment.inputs import Inputs, as_numbers, form_of, stack
from experiment.registry import InputForm, InputShape, resolve

LOOKED_AT = 500  # samples, evenly spread
ANY, NO_CLASS = 2**20, (255, -100)  # enough outputs for every dataset; targets that do not count
LARGEST_SIDE, STEP = 224, 32  # of images of several sizes, after the transforms


@dataclass(frozen=True)
class DataLook:
    """A dataset.

    Attributes:
        outputs: that a network needs.
        shape: of an input after transforms; None if it is unknown.
        num_train: number of samples in the training part; None if it is unknown.
        image: the shape, if inputs are images.
        several_sizes: images have to be resized to it.
        mean, std: of the channels of images; empty where nothing was read.
        example: a batch of one input, if it is no image.
    """

    task: str
    outputs: int
    shape: InputForm | None
    num_train: int | None
    image: tuple[int, ...] | None = None
    several_sizes: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    example: Inputs | None = None


def look_at_data(name: str, settings: Mapping[str, Any], data_dir: Path, task: str | None) -> DataLook:
    """Raises: ConfigError, DataError: the data are missing or damaged, and nothing else tells what they are."""
    entry = find_dataset(name)
    if entry is not None and entry.num_classes and entry.input_shape:  # not read, which might download it
        image = entry.input_shape
        return DataLook(task or entry.task, entry.num_classes, InputShape(image), entry.num_train, image)
    size = int(settings.get("numClasses", 10)) if name == "FakeData" else ANY
    try:
        read = load_own if entry is None else cast(Loader, resolve(entry.target))
        source = read(name, data_dir, True, settings, size)
    except (ConfigError, DataError):
        if entry is None or not entry.num_classes:
            raise
        return DataLook(task or entry.task, entry.num_classes, None, entry.num_train)
    items, classes = source.items, source.num_classes or (entry and entry.num_classes)
    step = max(1, len(items) // LOOKED_AT)
    pairs = [as_pair(f"sample {i}", items[i]) for i in range(0, len(items), step)]
    task = task or (entry.task if entry is not None else _task(*pairs[0]))
    outputs = classes or _outputs(task, items, [y for _, y in pairs])
    pictures = [picture for x, _ in pairs if (picture := _pixels(x)) is not None]
    if not pictures:
        example = stack([cast(Inputs, pairs[0][0])])
        return DataLook(task, outputs, form_of(example), len(items), example=example)
    shapes = {tuple(picture.shape) for picture in pictures}
    shape = next(iter(shapes))
    if len(shapes) > 1:
        side = min(LARGEST_SIDE, max(STEP, min(min(each[1:]) for each in shapes) // STEP * STEP))
        shape = (shape[0], side, side)
    return DataLook(task, outputs, InputShape(shape), len(items), shape, len(shapes) > 1, *_moments(pictures))


def _pixels(x: object) -> Tensor | None:
    """An image as numbers (C, H, W), in [0, 1] if it has bytes; None if it is something else."""
    if isinstance(x, Tensor) and (x.dim() != 3 or x.shape[0] not in (1, 3)):
        return None
    if isinstance(x, Mapping | tuple | list):
        return None
    picture: Tensor = functional.to_dtype(functional.to_image(x), torch.float32, scale=True)
    return picture.as_subclass(Tensor)


def _moments(pictures: Sequence[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel."""
    per_image_NC = torch.stack([picture.mean(dim=(1, 2)) for picture in pictures])
    squares_NC = torch.stack([picture.square().mean(dim=(1, 2)) for picture in pictures])
    mean_C = per_image_NC.mean(dim=0)
    std_C = (squares_NC.mean(dim=0) - mean_C.square()).clamp(min=1e-4).sqrt()
    return tuple(round(v, 3) for v in mean_C.tolist()), tuple(round(v, 3) for v in std_C.tolist())


def _task(x: object, y: object) -> str:
    """What the targets of the user's own dataset seem to mean."""
    numbers = as_numbers(y)
    if numbers is None:
        raise DataError(f"the targets are no numbers. Got {type(y).__name__}.")
    if isinstance(y, Mask):
        return "segmentation"
    if isinstance(x, Tensor) and not x.is_floating_point() and numbers.shape == x.shape:
        return "language_modelling"
    if numbers.dim() == 0:
        return "regression" if numbers.is_floating_point() else "classification"
    return "multilabel" if bool(((numbers == 0) | (numbers == 1)).all()) else "regression"


def _outputs(task: str, items: object, targets: Sequence[object]) -> int:
    """How many outputs a network needs: one per token (rounded up), label or value, or up to the largest class."""
    if isinstance(items, Windows):
        return -(-items.vocabulary // 64) * 64
    found = [numbers for y in targets if (numbers := as_numbers(y)) is not None]
    if "regression" in task or task == "multilabel":
        return found[0].numel()
    if isinstance(items, Pixels):
        found = [items.labels.as_subclass(Tensor)]
    every = torch.cat([numbers.flatten() for numbers in found]).long()
    return int(every[~torch.isin(every, torch.tensor(NO_CLASS))].max()) + 1
