"""The files that a network starts from: where they are, and the hash of their content. Without torch."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiment.datasets.file_stamp import hash_of
from experiment.errors import StoreError, shortened

DATASETS_FOLDER = Path("data/datasets")


@dataclass(frozen=True)
class GivenWeights:
    """A file of weights, with the hash of its content when the cells were planned."""

    path: Path
    content: str


def find_given(name: str, datasets: Path) -> GivenWeights | None:
    """The file of `network.weights`: absolute, from the working directory, or in the folder of datasets."""
    for path in (Path(name), datasets / name):
        if os.path.isfile(path):  # False for names that no file can have
            return GivenWeights(path.resolve(), content_hash(path))
    return None


def folder_hash(settings: Mapping[str, Any]) -> str | None:
    """The hash of the folder that `network.settings.config` names, written by transformers; None without one."""
    folder = settings.get("config")
    if not isinstance(folder, str) or not os.path.isdir(folder):
        return None
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".json", ".safetensors"))
    return hashlib.sha256("\n".join(f"{path.name} {content_hash(path)}" for path in files).encode()).hexdigest()[:16]


def datasets_folder(values: Mapping[str, Any], command_line: Path | None) -> Path:
    """The folder of datasets: from the command line, else from the file (plain values), else the default."""
    directories = values.get("directories")
    given = directories.get("training_data") if isinstance(directories, Mapping) else None
    return command_line or (Path(given) if isinstance(given, str) and given else DATASETS_FOLDER)


def missing_text(name: str, datasets: Path) -> str:
    """The error about a file that does not exist."""
    places = "" if Path(name).is_absolute() else f" in {Path.cwd()} or {datasets.absolute()}"
    expected = "Expected a state_dict as written by torch.save(net.state_dict(), path)."
    return f"no file '{shortened(name)}'{places}. {expected}"


def content_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file; cached by size and time of change.

    Raises: StoreError: it cannot be read.
    """
    try:
        status = path.stat()
        return _hash(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as stream:
        return hash_of(stream)[:16]
