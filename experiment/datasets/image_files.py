"""The files of an image folder: where it lies and which images are in it. Torch-free."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from experiment.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision
ROOT = "absolute, or relative to the folder of datasets (--data, data=) or the working directory"  # in errors
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


class File(NamedTuple):
    """A file of a dataset, as text and numbers: there may be millions, in every process.

    Attributes:
        name: within the dataset.
        place: its path.
        size: bytes.
        changed: times of the last change of its content and of its status, in nanoseconds.
    """

    name: str
    place: str
    size: int
    changed: tuple[int, int]

    @property
    def path(self) -> Path:
        return Path(self.place)


def file_at(name: str, place: str | Path, status: os.stat_result | None = None) -> File:
    """The file at a place; `status` if it is known.

    Raises:
        DataError: it is not a regular file: reading a pipe would block forever.
        OSError: there is none.
    """
    found = os.stat(place) if status is None else status
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{place} is not a regular file. Replace or remove it.")
    return File(name, str(place), found.st_size, (found.st_mtime_ns, found.st_ctime_ns))


def listed(*paths: Path) -> list[File]:
    """Files by their own names."""
    return [file_at(path.name, path) for path in paths]


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
            f"root ({ROOT}), train, test."
        )
    names = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    if not names:
        raise DataError(f"{folder} has no folders in it. Expected one folder of images per class.")
    return tuple(names)


def images_below(folder: Path, inside: str = "") -> list[File]:
    """All images below a folder, sorted by name. Hidden files are ignored, links are followed.

    Args:
        inside: begins every name.

    Raises: DataError: something cannot be read, is not a regular file, or links to a folder above it.
    """
    return sorted(_walk(folder, inside, frozenset()))


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
            yield _file(f"{inside}{entry.name}", entry)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM_FOLDERS]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def _file(name: str, entry: os.DirEntry[str]) -> File:
    try:
        return file_at(name, entry.path, entry.stat())
    except OSError as error:
        raise DataError(f"{entry.path} cannot be read: {error.strerror}. Replace or remove it.") from None
