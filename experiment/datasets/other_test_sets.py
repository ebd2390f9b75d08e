"""Corrupted, mixed, relabelled and newly collected versions of CIFAR-10, ImageNet and VOC, by torchprune's names.

Source: Hendrycks, Dietterich 2019, https://arxiv.org/abs/1903.12261; Recht et al. 2018,
https://arxiv.org/abs/1806.00451; Barbu et al. 2019, https://objectnet.dev; Liebenwein et al. 2021,
https://arxiv.org/abs/2103.03014
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from experiment.datasets import published_files
from experiment.datasets.corruptions import SEVERITIES
from experiment.datasets.corruptions.apply import corrupt_input, corrupted
from experiment.datasets.image_files import class_folders, images_below
from experiment.datasets.image_folder import FolderItems
from experiment.datasets.loading import load_source
from experiment.datasets.raw_images import Items, Pixels, Source, check_settings
from experiment.datasets.torchprune_names import MIXTURES, SHORT, corruption_in
from experiment.errors import DataError
from experiment.files import read_json
from experiment.random_streams import generator

_PER_SEVERITY = 10_000  # images of CIFAR-10-C
_BORDER = 3  # pixels of ObjectNet's red frame, as torchprune crops it


def load_corrupted(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """`BASE_C_CORRUPTION[_SEVERITY]`: the published files if they lie in the folder of datasets, else computed.

    Published are CIFAR-10-C/CORRUPTION.npy with labels.npy, and ImageNet-C/[GROUP/]CORRUPTION/SEVERITY/WNID/*.JPEG.
    Computed test images of ImageNet are scaled and cropped to 224 pixels before, as the published ones. The training
    part is corrupted as well, except ImageNet's, as in torchprune.

    Raises: DataError: the base dataset is missing, or a published file is damaged.
    """
    found = corruption_in(name)
    assert found is not None
    base, corruption, severity = found
    if base == "CIFAR10" and not train:
        paths = published_files.cifar_c(data_dir, corruption)
        if paths[0].is_file():
            check_settings(name, settings, ())
            first = 0 if severity is None else (severity - 1) * _PER_SEVERITY
            last = len(SEVERITIES) * _PER_SEVERITY if severity is None else severity * _PER_SEVERITY
            return _arrays(paths, slice(first, last))
    if base == "ImageNet" and not train:
        folders = published_files.imagenet_c(data_dir, corruption, severity)
        if all(folder.is_dir() for folder in folders):
            classes = class_folders(folders[0])
            items = _labelled([(folder / name, i) for folder in folders for i, name in enumerate(classes)])
            return Source(items, len(classes), classes=classes)
    source = load_source(base, settings, data_dir, train, output_size)
    if base == "ImageNet":
        if train:
            return source
        source = replace(source, items=_Changed(source.items, _resized))
    return corrupted(source, corruption, severity, "train" if train else "test")


def load_cifar10_1(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """CIFAR-10.1: 2,000 new test images, version 6; the training part is CIFAR-10's.

    Raises: DataError: its files are missing or damaged.
    """
    check_settings(name, settings, ())
    if train:
        return load_source("CIFAR10", {}, data_dir, True, output_size)
    paths = published_files.cifar10_1_paths(data_dir)
    if not all(path.is_file() for path in paths):
        raise DataError(
            f"dataset CIFAR10_1 is missing: put {paths[0].name} and {paths[1].name} (from "
            "https://github.com/modestyachts/CIFAR-10.1, folder datasets) into "
            f"{data_dir / published_files.CIFAR10_1}."
        )
    return _arrays(paths, slice(None))


def load_relabelled(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """`CIFAR10Rand20`: CIFAR-10 with a random wrong label for 20 percent of the training images.

    Every image is relabelled with this probability; each wrong class is equally likely.
    """
    source = load_source("CIFAR10", settings, data_dir, train, output_size)
    if not train:
        return source
    pixels, random = cast(Pixels, source.items), generator("relabelled", name)
    changed = torch.rand(len(pixels), generator=random) < int(name.removeprefix("CIFAR10Rand")) / 100
    shift = torch.randint(1, 10, (len(pixels),), generator=random)
    labels = torch.where(changed, (pixels.labels + shift) % 10, pixels.labels)
    return replace(source, items=Pixels(pixels.images, labels))


def load_mixture(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """CIFAR-10 whose training images are corrupted at random, anew in every epoch; the test part is unchanged.

    Each draws one of the mixture's corruptions, and a severity from 0 (none) to 5.
    """
    source = load_source("CIFAR10", settings, data_dir, train, output_size)
    if not train:
        return source
    corruptions = tuple(SHORT[short] for short in MIXTURES[name])
    return replace(source, items=_Changed(source.items, partial(_mixed, corruptions)))


def load_objectnet(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """ObjectNet's images of classes that ImageNet has, with ImageNet's class numbers; trained on ImageNet.

    Where several classes of ImageNet belong to one of ObjectNet, the first one counts, as in torchprune.

    Raises: DataError: it is missing or damaged.
    """
    check_settings(name, settings, ())
    if train:
        return load_source("ImageNet", {}, data_dir, True, output_size)
    root = data_dir / published_files.OBJECTNET
    missing = [path for path in (root / "images", *(root / "mappings" / file for file in published_files.MAPPINGS))
               if not path.exists()]  # fmt: skip
    if missing:
        raise DataError(
            f"dataset ObjectNet is missing: no {missing[0]}. Get objectnet-1.0.zip from https://objectnet.dev and "
            f"unpack it (password: objectnetisatestset) into {data_dir}."
        )
    numbers = _imagenet_numbers(root / "mappings")
    items = _labelled([(root / "images" / folder, number) for folder, number in sorted(numbers.items())])
    return Source(_Changed(items, _without_frame), 1000)


def _imagenet_numbers(mappings: Path) -> dict[str, int]:
    """Folder of ObjectNet -> class number of ImageNet, for the classes that both have."""
    try:
        in_imagenet, label_of, line_of = (cast(dict[str, Any], read_json(mappings / file))
                                          for file in published_files.MAPPINGS[:3])  # fmt: skip
        lines = (mappings / published_files.MAPPINGS[3]).read_text(encoding="utf-8").splitlines()
        number_of = {lines[int(line)]: int(number) for number, line in line_of.items()}
        shared = {folder: label for folder, label in label_of.items() if label in in_imagenet}
        return {folder: number_of[in_imagenet[label].split("; ")[0]] for folder, label in shared.items()}
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{mappings}: the files do not fit together ({type(error).__name__}: {error}). Unpack ObjectNet again."
        ) from None


@dataclass(frozen=True)
class _Changed:
    """Items whose images are changed by a function as they are read."""

    items: Items
    change: Callable[[Image.Image], Image.Image]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[object, object]:
        image, label = self.items[index]
        return self.change(cast(Image.Image, image)), label


def _resized(image: Image.Image) -> Image.Image:
    made: Image.Image = functional.center_crop(functional.resize(image, [256]), [224, 224])
    return made


def _without_frame(image: Image.Image) -> Image.Image:
    return image.crop((_BORDER, _BORDER, image.width - _BORDER, image.height - _BORDER))


def _mixed(corruptions: Sequence[str], image: Image.Image) -> Image.Image:
    """One of the corruptions, or none, by torch's random numbers, which are seeded for every image and epoch."""
    corruption = corruptions[int(torch.randint(len(corruptions), ()))]
    severity, seed = int(torch.randint(len(SEVERITIES) + 1, ())), int(torch.randint(2**62, ()))
    return cast(Image.Image, corrupt_input(image, corruption, severity, seed)) if severity else image


def _arrays(paths: Sequence[Path], rows: slice) -> Source:
    """Images (N, 32, 32, 3) and labels (N,) from numpy's files, without pickled objects."""
    try:
        images, labels = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{paths[0]}, {paths[1].name}: cannot be read ({error}). Get them again.") from None
    if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3) or len(images) < (rows.stop or 1):
        raise DataError(
            f"{paths[0]}: expected uint8 images ({rows.stop or len(labels)}, 32, 32, 3), as many as {paths[1].name} "
            f"has labels ({len(labels)}). Got {images.dtype} {images.shape}. Get them again."
        )
    pixels = torch.from_numpy(images[rows].transpose(0, 3, 1, 2).copy())
    return Source(Pixels(pixels, torch.from_numpy(labels[rows].astype(np.int64))), 10)


def _labelled(folders: Sequence[tuple[Path, int]]) -> FolderItems:
    """All images of folders, with the label of each folder."""
    found = [(file, label) for folder, label in folders for file in images_below(folder)]
    return FolderItems(tuple(file for file, _ in found), tuple(label for _, label in found))
