"""Folders of images, one folder per class; small images are decoded once and cached beside the data."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from experiment.datasets.decode_image import read_rgb
from experiment.datasets.file_stamp import stamp_of
from experiment.datasets.image_files import IMAGES, File, class_folders, folder_part, images_below
from experiment.datasets.raw_images import Pixels, Source, check_settings, fits_in_memory, pack, readable
from experiment.errors import CannotWrite, ConfigError, DataError, log
from experiment.files import whole_file
from experiment.tensor_file import read_array

CACHE = ".decoded"
DECODER = "1"  # part of the cache's name: raise it when images are decoded differently


@dataclass(frozen=True)
class FolderItems:
    """Images in files, as RGB, with the class, or the labels, of each."""

    files: tuple[File, ...]
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return read_rgb(self.files[index].path), self.labels[index]


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of an image folder: ROOT/train/CLASS/*.jpg, ROOT/test/CLASS/*.jpg (or ROOT/val).

    Settings: `root` (absolute, below the folder of datasets, or relative to the working directory), `train` and `test`
    (names of the two folders).

    Raises:
        ConfigError: there is no root.
        DataError: a folder is missing or empty, or the two have different classes.
    """
    check_settings(name, settings, ("root", "train", "test"))
    root = settings.get("root")
    if not isinstance(root, str) or not root:
        raise ConfigError(
            f"settings.root: ImageFolder needs the folder that holds train/ and test/: absolute, below {data_dir}, "
            f"or relative to the working directory. Got {root!r}."
        )
    train_folder, test_folder = (folder_part(data_dir, part, settings) for part in (True, False))
    return _load(train_folder, test_folder, data_dir, train)


def load_imagenet(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of ImageNet as torchvision unpacks it: ImageNet/train/WNID/*.JPEG and ImageNet/val/WNID/*.JPEG.

    Source: Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575
    """
    check_settings(name, settings, ("root",))
    root = data_dir / str(settings.get("root", "ImageNet"))
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataError(
            f"dataset ImageNet is missing: {root} has no train/ and val/ with one folder per class (n01440764, ...). "
            "It cannot be downloaded without an account: get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
            f"ILSVRC2012_devkit_t12.tar.gz from https://image-net.org, put them into {root} and unpack them with "
            f"torchvision.datasets.ImageNet('{root}', 'train') and ('{root}', 'val')."
        )
    return _load(root / "train", root / "val", data_dir, train)


def _load(train_folder: Path, test_folder: Path, data_dir: Path, train: bool) -> Source:
    folder = train_folder if train else test_folder
    classes = class_folders(folder)
    if not train and train_folder.is_dir() and class_folders(train_folder) != classes:
        differing = sorted(set(classes) ^ set(class_folders(train_folder)))
        raise DataError(
            f"{test_folder} and {train_folder} have different classes: {', '.join(differing[:5])}"
            f"{', ...' if len(differing) > 5 else ''}. Expected the same folders in both."
        )
    files: list[File] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = images_below(folder / name, f"{name}/")
        if not found:
            raise DataError(f"{folder / name} has no images in it. Expected files ending in {', '.join(IMAGES)}.")
        files += found
        labels += [label] * len(found)
    items = FolderItems(tuple(files), tuple(labels))
    pixels = _decode(items, folder, data_dir)
    return Source(items if pixels is None else pixels, len(classes), classes=classes, place=train_folder.parent)


def _decode(items: FolderItems, folder: Path, data_dir: Path) -> Pixels | None:
    """Small images of one size as one tensor, memory-mapped from a cache if it is writable; None for others.

    Worker processes map the same file, so they share its memory.
    """
    first = cast(Image.Image, next(readable(items))[0])
    shape = (len(items), 3, first.height, first.width)
    if not fits_in_memory(len(items), shape[1:]):
        return None
    cache = data_dir / CACHE
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        return pack(items)
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    path = cache / f"{place}-{DECODER}-{stamp_of(items.files, data_dir)}.npy"
    images = _read(path, shape)
    if images is None:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{place}.lock"):
            images = _read(path, shape)  # another process may have written it while this one waited
            images = _make(path, items, folder, shape) if images is None else images
    return None if images is None else Pixels(images, torch.tensor(items.labels))


def _make(path: Path, items: FolderItems, folder: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Decode all images and cache them; None if they have several sizes."""
    log.info("decoding %d images in %s; later runs use the cache", len(items), folder)
    packed = pack(items)
    if packed is None:
        return None
    _write(path, packed.images)
    mapped = _read(path, shape)
    return packed.images if mapped is None else mapped


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The cached pixels, memory-mapped; None if they are missing or damaged."""
    pixels = read_array(path)
    if pixels is None or pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    return torch.from_numpy(pixels)


def _write(path: Path, images: Tensor) -> None:
    """Cache pixels and remove older ones of the same folder, also parts; a full disk is reported and ignored."""
    for older in path.parent.glob(f"*{path.name.split('-')[0]}-*.npy"):
        older.unlink()
    try:
        with whole_file(path) as partial:
            np.save(partial, images.numpy(), allow_pickle=False)
    except CannotWrite as error:
        log.warning("%s The images will be decoded again next time.", error)
