"""Files that are there whole or not at all, and are read in bounded memory whatever they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiment.errors import CannotWrite, Damaged, StoreError

MOST_BYTES = 2**27  # of a file that is read into memory whole: no table or text of results comes near
MOST_JSON_BYTES = 2**22
RUN_AGAIN = "Run the experiment again to rewrite it."

MOST_LETTERS = 60  # of a text in the name of a file


def safe_name(text: str) -> str:
    """A text as part of a file name: safe everywhere, short enough to leave room for others, different for each text.

    A text that is not safe as it is loses something: a hash of the whole stands behind it, after a `~`.
    """
    safe = re.sub(r"[^A-Za-z0-9+._=,-]+", "_", text).strip(".")
    if safe == text and 0 < len(text) <= MOST_LETTERS:
        return text
    return f"{safe[: MOST_LETTERS - 9]}~{short_hash(text)}"


def short_hash(text: str) -> str:
    """Eight hexadecimal digits that tell texts apart where people read them."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


SECONDS_BEFORE_TOLD = 3.0  # of waiting for a lock

log = logging.getLogger("experiment")


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


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file inside; whoever waits long for it is told what the process that holds it is doing.

    Raises: CannotWrite: its folder cannot be made.
    """
    lock = FileLock(make_lock_file(path))
    try:
        lock.acquire(timeout=SECONDS_BEFORE_TOLD)
    except Timeout:
        log.warning("waiting for another process that %s (it holds %s)", doing, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file; pipes and devices are not even waited for.

    Raises: FileNotFoundError: there is none. Damaged: it is something else than a file, or larger than `most` bytes.
        StoreError: the disk, or its permissions, refuse it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Damaged(f"{path}: is not a regular file.")
            with open(descriptor, "rb", closefd=False) as stream:
                data = stream.read(most + 1)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # links in a circle; a socket
            raise Damaged(f"{path}: is not a regular file.") from error
        raise StoreError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(data) > most:
        raise Damaged(f"{path}: is larger than {most:,} bytes, which no such file is.")
    return data


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises: as `read_file`; Damaged also where the content is not JSON.
    """
    try:
        return json.loads(read_file(path, MOST_JSON_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: is damaged: it does not hold JSON.") from error


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
        if not path.is_file():  # a pipe would be waited for
            return False
        with zipfile.ZipFile(path) as archive:
            inside = archive.infolist()
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in inside)
            honest = stored and sum(info.file_size for info in inside) <= path.stat().st_size  # it is no bomb
            return honest and archive.testzip() is None
    except Exception:  # no list of what zipfile raises on damaged files is complete
        return False


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
