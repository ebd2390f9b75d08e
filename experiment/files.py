"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    The data reach the disk before the name does, so that not even a power cut leaves half a file under `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file so that it is there whole or as it was before."""
    with whole_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder out of the way, keeping it for whoever wants to look; returns its new place."""
    for number in range(1000):
        place = path.with_name(f"{path.name}.damaged{number or ''}")
        if not place.exists():
            os.replace(path, place)
            return place
    raise FileExistsError(f"{path}: too many damaged versions lie beside it. Remove some.")
