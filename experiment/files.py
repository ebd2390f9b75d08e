"""Atomic writing of files, and reading of files of any content in bounded memory."""

import errno
import hashlib
import json
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

from experiment.errors import CannotWrite, Damaged, StoreError, log

MAX_BYTES = 2**27  # of a file that is read into memory at once
MAX_JSON_BYTES = 2**22
RUN_AGAIN = "Run the experiment again to rewrite it."

MOST_LETTERS = 60  # of a text in the name of a file
SECONDS_BEFORE_NOTE = 3.0  # waiting for a lock


def safe_name(text: str) -> str:
    """A text as part of a file name: valid on all systems, bounded in length, and unique.

    A text that has to be changed gets a hash of the original appended after a `~`.
    """
    safe = re.sub(r"[^A-Za-z0-9+._=,-]+", "_", text).strip(".")
    if safe == text and 0 < len(text) <= MOST_LETTERS:
        return text
    return f"{safe[: MOST_LETTERS - 9]}~{short_hash(text)}"


def short_hash(text: str) -> str:
    """Eight hexadecimal digits."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces `path` if the block raises no error.

    The data are flushed to the disk before the file is renamed, so not even a power failure truncates `path`.

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
        remove_all((partial,))


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Convert an OSError of the block into CannotWrite, which names `path`."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{path}: cannot be written: {error.strerror or error}. Fix this, or choose another folder with --results "
            "or --data. Finished results are safe, and the same command continues."
        ) from error


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file inside the block.

    Args:
        doing: what the holder of the lock does, shown to processes that wait for long: "writes results.csv".
    Raises: CannotWrite: its folder cannot be created.
    """
    lock = FileLock(make_lock_file(path))
    try:
        lock.acquire(timeout=SECONDS_BEFORE_NOTE)
    except Timeout:
        log.warning("waiting for another process that %s (it holds %s)", doing, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_folder(path: Path) -> None:
    """Create a folder and its parents, if they do not exist.

    Raises: CannotWrite
    """
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)


def see_changes(folder: Path) -> None:
    """Make changes by other machines in a folder visible, which NFS clients show up to a minute late.

    An NFS client asks its server whenever a folder is opened (close-to-open consistency, see `man 5 nfs`). A process
    that has taken a lock calls this before it looks at what the lock protects.
    """
    with suppress(OSError):  # there is no such folder yet
        for place in (folder.parent, folder):  # the folder itself may be new
            os.close(os.open(place, os.O_RDONLY))


def make_lock_file(path: Path) -> Path:
    """Create a lock file and its folder, if they do not exist; returns the path.

    Raises: CannotWrite
    """
    make_folder(path.parent)
    with writing_to(path):
        path.touch()
    return path


def write_whole(path: Path, data: str | bytes | memoryview) -> None:
    """Write a file atomically."""
    with whole_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def read_file(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file; does not wait for pipes and devices.

    Raises: FileNotFoundError. Damaged: it is not a regular file, or larger than `most` bytes. StoreError: the system
        does not permit reading it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise Damaged(f"{path}: is not a regular file.")
            if facts.st_size > most:
                raise Damaged(f"{path}: is larger than {most:,} bytes, more than any such file.")
            with open(descriptor, "rb", buffering=0, closefd=False) as stream:  # `read(most)` would allocate as much
                return stream.read()
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a circle of links; a socket
            raise Damaged(f"{path}: is not a regular file.") from error
        raise StoreError(f"{path}: cannot be read: {error.strerror}.") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises: as `read_file`; Damaged also if the content is not JSON.
    """
    try:
        return json.loads(read_file(path, MAX_JSON_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: is damaged: it is not valid JSON.") from error


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files and whole folders; those that cannot be removed are left."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def is_whole_archive(path: Path) -> bool:
    """Whether a file is an uncompressed zip archive, as torch writes, with correct checksums."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            bounded = sum(entry.file_size for entry in entries) <= path.stat().st_size
            return stored and bounded and archive.testzip() is None
    except Exception:  # zipfile documents no complete list of what damaged files raise
        return False


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `*.damaged`, for inspection; returns its new path.

    Raises: CannotWrite
    """
    for number in range(1000):
        place = path.with_name(f"{path.name}.damaged{number or ''}")
        if not place.exists():
            with writing_to(place):
                os.replace(path, place)
            return place
    raise CannotWrite(f"{path}: there are too many damaged versions beside it. Remove some.")
