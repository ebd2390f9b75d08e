"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experiment.errors import CannotWrite, StoreError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    The data reach the disk before the name does, so that not even a power cut leaves half a file under `path`.
    Raises: CannotWrite: the disk is full, or the folder cannot be written to.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
    try:
        with writing_to(path):
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, path)
    finally:
        remove_all((partial,))  # it may not even be ours to remove: what went wrong before is what is told


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """What the disk refuses inside becomes one error, which names `path`.

    Raises: CannotWrite
    """
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{path}: cannot be written: {error.strerror or error}. Mend that, or choose another folder with --results "
            "or --data; what is finished is safe, and the same command continues."
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is not there.

    Raises: CannotWrite
    """
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)


def make_lock_file(path: Path) -> Path:
    """Make the file of a lock, and its folder, where they are not there; returns the path.

    Raises: CannotWrite
    """
    make_folder(path.parent)
    with writing_to(path):
        path.touch()
    return path


def write_whole(path: Path, data: str | bytes | memoryview) -> None:
    """Write a file so that it is there whole or as it was before."""
    with whole_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files and whole folders as far as they are there and can be removed."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def is_whole_archive(path: Path) -> bool:
    """Whether a file of torch's, a zip archive that is not compressed, is there whole and with all checksums right."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = archive.infolist()
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in inside)
            honest = stored and sum(info.file_size for info in inside) <= path.stat().st_size  # it is no bomb
            return honest and archive.testzip() is None
    except Exception:  # no list of what zipfile raises on damaged files is complete
        return False


def require_whole_lines(path: Path) -> None:
    """Raises: StoreError: a table is empty, or ends within a line; one that ends with a line is a shorter table."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        if not size:
            raise StoreError(f"{path}: is not a table of results: it is empty. Run the experiment again to rewrite it.")
        if stream.read(1) != b"\n":
            raise StoreError(f"{path}: is cut off in its last line. Run the experiment again to rewrite it.")


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder out of the way, keeping it for whoever wants to look; returns its new place.

    Raises: CannotWrite
    """
    for number in range(1000):
        place = path.with_name(f"{path.name}.damaged{number or ''}")
        if not place.exists():
            with writing_to(place):
                os.replace(path, place)
            return place
    raise CannotWrite(f"{path}: too many damaged versions lie beside it. Remove some.")
