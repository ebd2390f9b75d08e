"""Load a dataset by name: read it, split it, and prepare it for a network."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torchvision.tv_tensors import Mask

from experiment.datasets import DATASETS, find_dataset
from experiment.datasets.dataloader import Readers, WorkerImages
from experiment.datasets.factories import load_own
from experiment.datasets.image_data import Images, Splits, Transforms
from experiment.datasets.in_memory import MemoryImages, prepare
from experiment.datasets.kept_batches import KeptBatches
from experiment.datasets.raw_images import Pixels, Source
from experiment.datasets.transforms import alike_in_batches, check_transforms, make_pipeline, plain_step
from experiment.errors import ConfigError, DataError
from experiment.random_streams import generator
from experiment.registry import is_import_path, resolve, suggestion
from experiment.tasks.classification import TASK as CLASSIFICATION
from experiment.tasks.task import Task, read_target

VALID_SHARE = 0.1  # of the training part
MIN_TRAIN_IMAGES = 4  # two to train on (BatchNorm), one held out, and one to spare

MORE = "Add samples; for windows of text, lengthen the training file or shorten settings.length."

Loader = Callable[[str, Path, bool, Mapping[str, object], int], Source]


def make_splits(
    name: str,
    train: Source,
    test: Source,
    transforms: Transforms,
    *,
    seed: int,
    output_size: int,
    device: torch.device | str,
    workers: int,
    task: Task = CLASSIFICATION,
) -> Splits:
    """Training, validation and test images of a dataset.

    Args:
        name: of the dataset.
        train, test: its parts as they were read.
        output_size: outputs of the network per prediction, such as the number of classes.
        workers: number of processes that read images which do not fit into memory.
        task: what the targets mean.
    Raises:
        ConfigError: a transform is wrong.
        DataError: the data are damaged, or too few.
    """
    how = partial(make_images, name, transforms=transforms, output_size=output_size, device=device, workers=workers,
                  task=task)  # fmt: skip
    train_images, valid_images = how(train, parts=split(len(train.items), seed, name))
    (test_images,) = how(test)
    return Splits(train_images, valid_images, test_images, output_size, test_images.input_shape)


def split(num_images: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Indices of training and validation images, 90/10, drawn from (seed, name): the same for all networks and methods.

    Raises: DataError: there are too few images to split.
    """
    if num_images < MIN_TRAIN_IMAGES:
        raise DataError(
            f"dataset {name} has {num_images} training samples; at least {MIN_TRAIN_IMAGES} are needed. {MORE}"
        )
    order = torch.randperm(num_images, generator=generator("split", seed, name))
    num_valid = max(1, round(VALID_SHARE * num_images))
    return order[num_valid:], order[:num_valid]


def load_source(name: str, settings: Mapping[str, object], data_dir: Path, train: bool, output_size: int) -> Source:
    """Read one part of a dataset.

    Raises:
        ConfigError: unknown dataset, or wrong settings.
        DataError: it is missing or damaged, or its classes do not match `output_size`.
    """
    if is_import_path(name):
        source = load_own(name, data_dir, train, settings, output_size)
    elif (entry := find_dataset(name)) is not None:
        source = cast(Loader, resolve(entry.target))(name, data_dir, train, settings, output_size)
    else:
        near = suggestion(name, DATASETS) or f" Known are {', '.join(DATASETS)}, and package.module:factory."
        raise ConfigError(f"unknown dataset '{name}'.{near}")
    if source.num_classes is not None and source.num_classes != output_size:
        raise DataError(
            f"network.outputSize is {output_size}, but dataset {name} has {source.num_classes} classes. "
            f"Set outputSize: {source.num_classes}, or choose another dataset."
        )
    return source


def make_images(
    name: str,
    source: Source,
    *,
    transforms: Transforms,
    parts: Sequence[Tensor | None] = (None,),
    output_size: int,
    device: torch.device | str,
    workers: int,
    task: Task = CLASSIFICATION,
) -> list[Images]:
    """Parts of a source, given by indices (None for all images); other arguments and errors as for `make_splits`."""
    where, items, device = f"dataset {name}", source.items, torch.device(device)
    if problems := check_transforms(transforms):
        raise ConfigError(problems)
    pipelines = [[plain_step(s) for s in (*own, *transforms.final)] for own in (transforms.train, transforms.test)]
    prepared = prepare(items, pipelines, device) if isinstance(items, Pixels) else None
    if isinstance(items, Pixels) and prepared is not None:
        train, test = prepared
        labels = _targets(where, items.labels, task, output_size).to(device)
        return [MemoryImages(train, test, labels, None if p is None else p.to(device)) for p in parts]
    late = transforms.final if alike_in_batches(transforms.final) else ()
    augment, plain = (make_pipeline(steps[: len(steps) - len(late)], raw=True) for steps in pipelines)
    readers = Readers(items, augment, plain, workers, task.target, finish=make_pipeline(late))
    read = [WorkerImages(where, readers, task, output_size, indices=p, device=device) for p in parts]
    return [KeptBatches(images, device) for images in read]


def _targets(where: str, labels: Tensor, task: Task, output_size: int) -> Tensor:
    """The targets (N, ...) of images in memory, as the task needs them."""
    if len(labels):
        first = read_target(task.target, f"{where}: sample 0", labels[0])
        if first.dtype != labels.dtype or first.shape != labels.shape[1:]:
            made = torch.stack(
                [read_target(task.target, f"{where}: sample {i}", label) for i, label in enumerate(labels)]
            )
            labels = Mask(made) if isinstance(labels, Mask) else made
    task.check(where, output_size, labels.as_subclass(Tensor))
    return labels
