"""A stamp of the files that a dataset is read from: other content, another stamp. Torch-free.

The stamp of a part is a hash of the names and contents of its files. Contents are read once: the stamp is remembered in
`.stamps/` below the folder of datasets, with the files' names, sizes and times, and is read again when those change.
Nothing is remembered where that folder cannot be written to, or of files that have only just changed. Datasets that are
built in, or whose files are checked against published checksums when they are read, have no stamp: they are constant.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from experiment.datasets import DATASETS
from experiment.errors import CannotWrite
from experiment.escaping import json_text
from experiment.files import write_whole
from experiment.registry import resolve

CONSTANT = ""
FOLDER = ".stamps"
FORMAT = 1
JUST_NOW = 1.0  # seconds: what changed so lately may change again without its time changing
MANY_BYTES = 1_000_000_000  # that take seconds to read
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")  # made by no user
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as torchvision has it

File = tuple[str, Path]  # its name within the dataset, and where it lies
Files = Callable[[str, Path, bool, Mapping[str, object]], Sequence[File]]

log = logging.getLogger("experiment")


def stamp_of_files(name: str, settings: Mapping[str, object], data_dir: Path, train: bool) -> str | None:
    """The stamp of one part of a registered dataset; CONSTANT where it has none, None where its files are missing.

    Datasets of the user's own have None, too: what they read is theirs to know.
    """
    entry = DATASETS.get(name)
    if entry is None or not entry.files:
        return None if entry is None else CONSTANT
    try:
        files = cast(Files, resolve(entry.files))(name, data_dir, train, settings)
        return _stamp(files, data_dir / FOLDER) if files else None
    except OSError:  # told when the dataset is loaded
        return None


def idx_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The files of MNIST and its like, packed or not."""
    part = "train" if train else "t10k"
    paths = [data_dir / name / "raw" / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    return [(path.name, path if path.is_file() else path.with_name(f"{path.name}.gz")) for path in paths]


def folder_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The images of an image folder, of all its classes; what is hidden is none."""
    return _images_below(folder_part(data_dir, train, settings))


def folder_part(data_dir: Path, train: bool, settings: Mapping[str, object]) -> Path:
    """The folder of one part of an image folder, whether it is there or not: the one place that says where it lies.

    A `root` is absolute, below the folder of datasets, or from the working directory, in this order. The test part is
    `val` where no `test` is named and there is none.
    """
    given = str(settings.get("root", ""))
    places = (data_dir / given, Path(given))  # an absolute one is the same in both
    root = next((place for place in places if place.is_dir()), places[0])
    part = root / str(settings.get("train", "train") if train else settings.get("test", "test"))
    if not train and "test" not in settings and not part.is_dir() and (root / "val").is_dir():
        return root / "val"
    return part


def imagenet_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The images of one part of ImageNet."""
    return _images_below(data_dir / str(settings.get("root", name)) / ("train" if train else "val"))


def _images_below(folder: Path) -> Sequence[File]:
    return sorted(_walk(folder, "", frozenset())) if folder.is_dir() else ()


def _walk(folder: Path, inside: str, above: frozenset[tuple[int, int]]) -> Iterator[File]:
    """The images below a folder; links to folders are followed, but not in a circle."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS or here in above:
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, f"{name}/", above | {here})
            elif entry.name.lower().endswith(IMAGES):
                yield name, folder / entry.name


def _stamp(files: Sequence[File], cache: Path) -> str:
    """The stamp of files, remembered or made. Raises: OSError: a file cannot be read."""
    seen, newest, size = hashlib.sha256(), 0, 0
    for name, path in files:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no file")
        times = (status.st_mtime_ns, status.st_ctime_ns)
        newest, size = max(newest, *times), size + status.st_size
        seen.update(os.fsencode(f"{name}\0{path.absolute()}\0{status.st_size}\0{times}\n"))
    place = cache / f"{hashlib.sha256(os.fsencode(files[0][1].absolute())).hexdigest()[:16]}.json"
    remembered = _read(place)
    if remembered.get("seen") == seen.hexdigest() and isinstance(remembered.get("stamp"), str):
        return str(remembered["stamp"])
    if size > MANY_BYTES:
        log.warning("reading %d files of %s once, to know whether they change", len(files), files[0][1].parent)
    content = hashlib.sha256()
    for name, path in files:
        content.update(os.fsencode(f"{name}\0{_content(path)}\n"))
    stamp = content.hexdigest()[:16]
    if newest < (time.time() - JUST_NOW) * 1e9:
        with suppress(CannotWrite):
            write_whole(place, json_text({"format": FORMAT, "seen": seen.hexdigest(), "stamp": stamp}) + "\n")
    return stamp


def _content(path: Path) -> str:
    """The hash of what is in a file, unpacked where it is packed."""
    if path.suffix == ".gz":
        with suppress(OSError, EOFError, zlib.error), gzip.open(path) as stream:
            return hash_of(cast(BinaryIO, stream))
    with path.open("rb") as stream:
        return hash_of(stream)


def hash_of(stream: BinaryIO) -> str:
    """The hash of what is left to read of a file."""
    found = hashlib.sha256()
    while block := stream.read(2**20):
        found.update(block)
    return found.hexdigest()


def _read(place: Path) -> Mapping[str, object]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {}
