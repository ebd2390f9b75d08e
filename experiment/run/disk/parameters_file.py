"""parameters.yaml of an experiment's folder: the parameters of its results. Does not import torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiment.config import ParameterFile, read_plain_yaml
from experiment.errors import ConfigError, StoreError
from experiment.files import RUN_AGAIN, locked, write_whole

PARAMETERS = "parameters.yaml"
HEADER = "# format 1"
OWNER = "# of "  # followed by JSON: the parameter file and its overrides
MAX_OWNER = 100_000  # characters of that line


@dataclass(frozen=True)
class Owner:
    """The parameter file whose results a folder holds.

    Attributes:
        file: relative to the folder, so that both can be moved together; None if unknown.
        overrides: of the command line (`--set`).
    """

    file: str | None = None
    overrides: tuple[str, ...] = ()


def write_parameters(folder: Path, file: ParameterFile, lock: Path) -> None:
    """Write the parameters and their origin into an experiment's folder.

    Raises: StoreError: the folder holds the results of another parameter file.
    """
    with locked(lock, "writes parameters.yaml"):
        require_own(folder, file.path)
        # not `json_text`, which escapes: a file name that is not UTF-8 must be read back unchanged
        owner = {"file": _path_from(folder, file.path), "set": list(file.overrides)}
        head = f"{HEADER}\n{OWNER}{json.dumps(owner)}\n# Includes are merged, overrides of the command line applied.\n"
        write_whole(folder / PARAMETERS, head + yaml.safe_dump(file.values, sort_keys=False))


def require_own(folder: Path, file: Path) -> None:
    """Refuse a folder with the results of another parameter file. A file that no longer exists was renamed or moved.

    Raises: StoreError: names the other file.
    """
    owner = owner_of(folder).file
    if owner is None:
        return
    other = Path(os.path.normpath(folder.resolve() / owner))
    if other.is_file() and not (file.is_file() and other.samefile(file)):
        raise StoreError(
            f"{folder}: contains the results of another parameter file, {other}, which has the same name as {file}. "
            "Rename one of them, or use another folder with --results."
        )


def owner_of(folder: Path) -> Owner:
    """The parameter file whose results a folder holds; unknown if its parameters.yaml is missing or damaged."""
    try:
        with (folder / PARAMETERS).open(encoding="utf-8", errors="replace") as stream:
            lines = [stream.readline(MAX_OWNER) for _ in range(2)]
        owner = json.loads(lines[1].removeprefix(OWNER)) if lines[1].startswith(OWNER) else {}
        file, overrides = owner.get("file"), owner.get("set", [])
    except (OSError, ValueError, AttributeError, RecursionError):
        return Owner()
    valid = isinstance(file, str) and "\0" not in file and isinstance(overrides, Sequence)
    return Owner(file, tuple(map(str, overrides))) if valid else Owner()


def _path_from(folder: Path, file: Path) -> str:
    try:
        return os.path.relpath(file.resolve(), folder.resolve())
    except ValueError:  # another drive, on Windows
        return str(file.resolve())


def read_parameters(path: Path) -> Mapping[str, Any]:
    """The values in parameters.yaml; empty if the file is missing.

    Raises: StoreError: it is not YAML, or not plain values of limited size.
    """
    if not path.exists():
        return {}
    if not path.is_file():  # reading a pipe would wait
        raise StoreError(f"{path}: is not a regular file.")
    try:
        return read_plain_yaml(path)
    except ConfigError as error:
        raise StoreError(f"{error} {RUN_AGAIN}") from error
