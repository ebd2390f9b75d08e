"""The file of trained weights that a parameter file starts its network from: where it lies, and its hash. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiment.errors import StoreError, shortened

DATASETS_FOLDER = Path("data/datasets")


@dataclass(frozen=True)
class GivenWeights:
    """A file of weights as it was when the cells were planned: `content` is the hash of what is in it."""

    path: Path
    content: str


def find_given(name: str, datasets: Path) -> GivenWeights | None:
    """The file behind `network.weights`: absolute, from the working directory, or below the folder of datasets."""
    for path in (Path(name), datasets / name):
        if os.path.isfile(path):  # False, too, for a name that no file can have
            return GivenWeights(path.resolve(), content_hash(path))
    return None


def datasets_folder(values: Mapping[str, Any], command_line: Path | None) -> Path:
    """Where datasets lie: the command line before the file (as plain values) before the default."""
    directories = values.get("directories")
    said = directories.get("training_data") if isinstance(directories, Mapping) else None
    return command_line or (Path(said) if isinstance(said, str) and said else DATASETS_FOLDER)


def missing_text(name: str, datasets: Path) -> str:
    """What to say of a file that is not there."""
    places = "it is absolute" if Path(name).is_absolute() else f"looked in {Path.cwd()} and {datasets.absolute()}"
    expected = "Expected a state_dict, as torch.save(net.state_dict(), path) writes."
    return f"there is no file '{shortened(name)}' ({places}). {expected}"


def content_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file; read again only when its size or time changes.

    Raises: StoreError: it cannot be read.
    """
    try:
        status = path.stat()
        return _hash(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            found.update(block)
    return found.hexdigest()[:16]
