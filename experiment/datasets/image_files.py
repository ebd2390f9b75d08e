"""The files of an image folder: where it lies and which images are in it. Torch-free."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from experiment.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


class File(NamedTuple):
    """A file of a dataset: its name within the dataset, its path, and its size and times."""

    name: str
    path: Path
    status: os.stat_result


def listed(*paths: Path) -> list[File]:
    """Files by their own names."""
    return [File(path.name, path, path.stat()) for path in paths]


def folder_part(data_dir: Path, train: bool, settings: Mapping[str, object]) -> Path:
    """The folder of the training or test part of an image folder, whether it exists or not.

    `root` is absolute, below `data_dir`, or relative to the working directory, tried in this order. The test part is
    `val` if the settings name no `test` and there is no folder of that name.
    """
    given = str(settings.get("root", ""))
    places = (data_dir / given, Path(given))  # an absolute one is the same in both
    root = next((place for place in places if place.is_dir()), places[0])
    part = root / str(settings.get("train", "train") if train else settings.get("test", "test"))
    if not train and "test" not in settings and not part.is_dir() and (root / "val").is_dir():
        return root / "val"
    return part


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in `folder`, one per class, sorted.

    Raises: DataError: there is no such folder, or it has no folders in it.
    """
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}. Expected it to hold one folder of images per class. Check the dataset's settings: "
            "root (absolute, or relative to --data), train, test."
        )
    names = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    if not names:
        raise DataError(f"{folder} has no folders in it. Expected one folder of images per class.")
    return tuple(names)


def images_below(folder: Path) -> list[File]:
    """All images below a folder, sorted by name. Hidden files are ignored, links are followed.

    Raises: DataError: something cannot be read, is not a regular file, or links to a folder above it.
    """
    return sorted(_walk(folder, "", frozenset()))


def _walk(folder: Path, inside: str, above: frozenset[tuple[int, int]]) -> Iterator[File]:
    """The images below a folder; `above` has the device and inode of the folders that led here."""
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        raise DataError(f"{folder} links to a folder above it. Remove the link.")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{inside}{entry.name}/", above | {here})
        elif entry.name.lower().endswith(IMAGES):
            yield File(f"{inside}{entry.name}", folder / entry.name, _status(entry))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM_FOLDERS]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        status = entry.stat()
    except OSError as error:
        raise DataError(f"{entry.path} cannot be read: {error.strerror}. Replace or remove it.") from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would block forever
        raise DataError(f"{entry.path} is not a regular file. Replace or remove it.")
    return status
