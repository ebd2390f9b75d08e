"""Stamps of the files that a dataset is read from: if their content changes, so does the stamp. Torch-free.

The stamp of a part is a hash of the names and contents of its files. It is cached in `.stamps/` below the folder of
datasets, together with the files' names, sizes and times, and computed again when those change. It is not cached if
that folder is not writable, or for files that have only just changed. Built-in datasets, and those whose files are
checked against published checksums when they are read, are constant and have no stamp.
"""

import gzip
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from experiment.datasets import find_dataset
from experiment.datasets.image_files import File, file_at, folder_part, images_below, listed
from experiment.errors import CannotWrite, ExperimentError, log
from experiment.escaping import json_text
from experiment.files import read_json, write_whole
from experiment.registry import resolve

CONSTANT = ""
FOLDER = ".stamps"
JUST_NOW = 1.0  # seconds: a file that changed this recently may change again without its time changing
MANY_BYTES = 1_000_000_000  # take seconds to read

Files = Callable[[str, Path, bool, Mapping[str, object]], Sequence[File]]


def stamp_of_part(name: str, settings: Mapping[str, object], data_dir: Path, train: bool) -> str | None:
    """The stamp of one part of a registered dataset.

    Returns: CONSTANT if the dataset is constant; None if its files are missing or unreadable, or if it is the user's
        own dataset, whose files are not known.
    """
    entry = find_dataset(name)
    if entry is None or not entry.files:
        return None if entry is None else CONSTANT
    try:
        files = cast(Files, resolve(entry.files))(name, data_dir, train, settings)
        return stamp_of(files, data_dir) if files else None
    except (OSError, ExperimentError):  # reported when the dataset is loaded
        return None


def idx_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The files of MNIST and datasets in its format, packed or not."""
    part = "train" if train else "t10k"
    paths = [data_dir / name / "raw" / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    found = [(path.name, path if path.is_file() else path.with_name(f"{path.name}.gz")) for path in paths]
    return [file_at(name, path) for name, path in found]


def folder_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The images of one part of an image folder."""
    return images_below(folder_part(data_dir, train, settings))


def imagenet_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The images of one part of ImageNet."""
    return images_below(data_dir / str(settings.get("root", name)) / ("train" if train else "val"))


def labelled_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The images of one part, and its table of labels."""
    folder = folder_part(data_dir, train, settings)
    return [*images_below(folder), *listed(folder / str(settings.get("labels", "labels.csv")))]


def stamp_of(files: Sequence[File], data_dir: Path) -> str:
    """The stamp of files, from the cache below `data_dir` or computed.

    Raises: OSError: a file cannot be read.
    """
    seen, here = hashlib.sha256(), os.getcwd()
    for name, place, size, times in files:  # tools that restore the first time cannot set the second
        seen.update(os.fsencode(f"{name}\0{os.path.join(here, place)}\0{size}\0{times}\n"))
    cached = data_dir / FOLDER / f"{hashlib.sha256(os.fsencode(files[0].path.absolute())).hexdigest()[:16]}.json"
    known = _read(cached)
    if known.get("seen") == seen.hexdigest() and isinstance(known.get("stamp"), str):
        return str(known["stamp"])
    if sum(file.size for file in files) > MANY_BYTES:
        log.warning("reading %d files in %s once, to detect later changes", len(files), files[0].path.parent)
    content = hashlib.sha256()
    for file in files:
        content.update(os.fsencode(f"{file.name}\0{_content(file.path)}\n"))
    stamp = content.hexdigest()[:16]
    if max(max(file.changed) for file in files) < (time.time() - JUST_NOW) * 1e9:
        with suppress(CannotWrite):
            write_whole(cached, json_text({"seen": seen.hexdigest(), "stamp": stamp}) + "\n")
    return stamp


def _content(path: Path) -> str:
    """The hash of a file's content, of the unpacked content if it is packed."""
    if path.suffix == ".gz":
        with suppress(OSError, EOFError, zlib.error), gzip.open(path) as stream:
            return hash_of(cast(BinaryIO, stream))
    with path.open("rb") as stream:
        return hash_of(stream)


def hash_of(stream: BinaryIO) -> str:
    """The SHA-256 of what remains of a stream."""
    found = hashlib.sha256()
    while block := stream.read(2**20):
        found.update(block)
    return found.hexdigest()


def _read(cached: Path) -> Mapping[str, object]:
    try:
        found = read_json(cached)
    except (OSError, ExperimentError):
        return {}
    return found if isinstance(found, dict) else {}
