"""Folders of images, one folder a class; small ones are decoded once and kept beside the data."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from experiment.datasets.decode_image import read_rgb
from experiment.datasets.file_stamp import SYSTEM_FOLDERS, folder_part
from experiment.datasets.raw_images import Pixels, Source, check_settings, fits_in_memory, pack
from experiment.errors import ConfigError, DataError

CACHE = ".decoded"
DECODING = (
    b"upright, 16 bits scaled\n"  # part of the stamp: pixels that were decoded otherwise are not taken from the cache
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderItems:
    """The images under `root`, in the order of class and file name, as RGB; with the size of each file in bytes."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_rgb(self.root / self.files[index]), self.labels[index]


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of an image folder: ROOT/train/CLASS/*.jpg, ROOT/test/CLASS/*.jpg (or ROOT/val).

    Settings: `root` (absolute, below the folder of datasets, or from the working directory), `train` and `test` (names
    of the two folders).

    Raises: ConfigError: no root. DataError: a folder is missing or empty, or the two have different classes.
    """
    check_settings(name, settings, ("root", "train", "test"))
    root = settings.get("root")
    if not isinstance(root, str) or not root:
        raise ConfigError(
            f"settings.root: ImageFolder needs the folder that holds train/ and test/: absolute, below {data_dir}, "
            f"or from the working directory. Got {root!r}."
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
            f"dataset ImageNet is missing: {root} has no train/ and val/ with one folder a class (n01440764, ...). It "
            "cannot be downloaded without an account: get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
            f"ILSVRC2012_devkit_t12.tar.gz from https://image-net.org, put them into {root} and unpack them with "
            f"torchvision.datasets.ImageNet('{root}', 'train') and ('{root}', 'val')."
        )
    return _load(root / "train", root / "val", data_dir, train)


def _load(train_folder: Path, test_folder: Path, data_dir: Path, train: bool) -> Source:
    folder = train_folder if train else test_folder
    classes = _classes(folder)
    if not train and train_folder.is_dir() and _classes(train_folder) != classes:
        differing = sorted(set(classes) ^ set(_classes(train_folder)))
        raise DataError(
            f"{test_folder} and {train_folder} have different classes: {', '.join(differing[:5])} "
            f"{'...' if len(differing) > 5 else 'stand'} in one of them only. Both need the same folders."
        )
    items, stamp = _scan(folder, classes)
    pixels = _decode(items, stamp, data_dir / CACHE)
    return Source(items if pixels is None else pixels, len(classes), classes=classes, place=train_folder.parent)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}. Expected it to hold one folder of images a class. Check the dataset's settings: root "
            "(absolute, or relative to --data), train, test."
        )
    names = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    if not names:
        raise DataError(f"{folder} has no folders in it. Expected one folder of images a class.")
    return tuple(names)


def _scan(folder: Path, classes: Sequence[str]) -> tuple[FolderItems, str]:
    """The image files of every class, and a hash of their names, sizes and times."""
    files: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    stamp = hashlib.sha256(DECODING)
    for label, name in enumerate(classes):
        before = len(files)
        for parent, entries in sorted(_walk(folder / name, ())):
            inside = os.path.relpath(parent, folder)
            for entry in sorted(entries):
                if entry.lower().endswith(IMG_EXTENSIONS):
                    status = _status(os.path.join(parent, entry))
                    files.append(os.path.join(inside, entry))
                    labels.append(label)
                    sizes.append(status.st_size)
                    times = status.st_mtime_ns, status.st_ctime_ns  # tools that restore the first cannot set the second
                    stamp.update(os.fsencode(f"{files[-1]}\0{status.st_size}\0{times}\n"))
        if len(files) == before:
            raise DataError(
                f"{folder / name} has no images in it. Expected files ending in {', '.join(IMG_EXTENSIONS)}."
            )
    return FolderItems(folder, tuple(files), tuple(labels), tuple(sizes)), stamp.hexdigest()


def _walk(folder: str | Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[str]]]:
    """Every folder from here down, links followed, with the names of what is in it beside folders.

    Args:
        above: device and inode of the folders that led here.
    """
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in above:
        raise DataError(f"{folder} is a link to a folder that holds it. Remove the link.")
    entries = _entries(folder)
    yield str(folder), [entry.name for entry in entries if not entry.is_dir()]
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, (*above, here))


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden files and what systems put into folders."""
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM_FOLDERS]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def _status(path: str) -> os.stat_result:
    """Size and time of an image file.

    Raises: DataError: it is a link to nothing, or no file: a pipe would be waited for without end.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Replace or remove it.") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is no regular file. Replace or remove it.")
    return status


def _decode(items: FolderItems, stamp: str, cache: Path) -> Pixels | None:
    """Small images of one size as one tensor, mapped from the cache where they lie in it; None for others.

    Worker processes map the same file, so they share its memory.
    """
    first, _ = items[0]
    shape = (len(items), 3, first.height, first.width)
    if not fits_in_memory(len(items), shape[1:]):
        return None
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        return pack(items)
    place = hashlib.sha256(os.fsencode(items.root.resolve())).hexdigest()[:12]
    path = cache / f"{place}-{stamp[:20]}.npy"
    images = _read(path, shape)
    if images is None:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{place}.lock"):
            images = _read(path, shape)  # another process may have written it while this one waited
            images = _make(path, items, shape) if images is None else images
    return None if images is None else Pixels(images, torch.tensor(items.labels))


def _make(path: Path, items: FolderItems, shape: tuple[int, ...]) -> Tensor | None:
    """Decode all images and cache them; None where they are of several sizes."""
    log.info("decoding %d images of %s, once for all runs", len(items), items.root)
    packed = pack(items)
    if packed is None:
        return None
    _write(path, packed.images)
    mapped = _read(path, shape)
    return packed.images if mapped is None else mapped


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The cached pixels, mapped; None where they are not there whole."""
    if not path.is_file():
        return None
    try:
        pixels = np.load(path, mmap_mode="c")  # copy on write: torch wants memory that it may write to
    except (OSError, ValueError, EOFError):  # cut off by a disk that failed: decoded again
        return None
    return torch.from_numpy(pixels) if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _write(path: Path, images: Tensor) -> None:
    """Cache pixels whole or not at all, in place of older ones of the same folder; not where the disk has no room."""
    for older in path.parent.glob(f"{path.name.split('-')[0]}-*.npy"):
        older.unlink()
    temporary = path.with_suffix(".tmp")  # one process at a time writes here: what a killed one left is overwritten
    try:
        with open(temporary, "wb") as file:
            np.save(file, images.numpy(), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s cannot be written (%s): the images will be decoded again next time", path, error)
        temporary.unlink(missing_ok=True)
