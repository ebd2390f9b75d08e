"""parameters.yaml of an experiment's folder: what its results were made with, as plain values. No torch here."""

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
from experiment.files import RUN_AGAIN, locked, read_file, write_whole

PARAMETERS = "parameters.yaml"
MOST_LETTERS = 100_000  # of a line that says whose results these are
HEADER = "# format 1, ends with a line of three dots"
END = "...\n"  # YAML's own mark of an end: without it a file that was cut off may look whole
OWNER = "# of "  # and JSON: whose results these are


@dataclass(frozen=True)
class Owner:
    """Whose results a folder holds.

    Attributes:
        file: the parameter file, relative to the folder, so that both may move together; None where nothing says so.
        overrides: the `--set` of the command line.
    """

    file: str | None = None
    overrides: tuple[str, ...] = ()


def write_parameters(folder: Path, file: ParameterFile, lock: Path) -> None:
    """Leave in an experiment's folder what its results are made with, and whose they are.

    Raises: StoreError: they are another file's.
    """
    with locked(lock, "writes parameters.yaml"):
        require_own(folder, file.path)
        # not `json_text`: a file name that is not UTF-8 has to come back as it is
        owner = {"file": _path_from(folder, file.path), "set": list(file.overrides)}
        head = f"{HEADER}\n{OWNER}{json.dumps(owner)}\n# Includes are merged, overrides of the command line applied.\n"
        write_whole(folder / PARAMETERS, head + yaml.safe_dump(file.values, sort_keys=False) + END)


def require_own(folder: Path, file: Path) -> None:
    """Refuse a folder with the results of another file; one that is gone was moved or renamed, and is no other.

    Raises: StoreError: names the other file.
    """
    said = owner_of(folder).file
    if said is None:
        return
    other = Path(os.path.normpath(folder.resolve() / said))
    if other.is_file() and not (file.is_file() and other.samefile(file)):
        raise StoreError(
            f"{folder}: holds the results of another parameter file, {other}, which has the same name as {file}. "
            "Rename one of them, or keep the results of one elsewhere with --results."
        )


def owner_of(folder: Path) -> Owner:
    """Whose results a folder holds, as far as it says so."""
    try:
        with (folder / PARAMETERS).open(encoding="utf-8", errors="replace") as stream:
            lines = [stream.readline(MOST_LETTERS) for _ in range(2)]
        owner = json.loads(lines[1].removeprefix(OWNER)) if lines[1].startswith(OWNER) else {}
        file, overrides = owner.get("file"), owner.get("set", [])
    except (OSError, ValueError, AttributeError, RecursionError):
        return Owner()
    whole = isinstance(file, str) and "\0" not in file and isinstance(overrides, Sequence)
    return Owner(file, tuple(map(str, overrides))) if whole else Owner()


def _path_from(folder: Path, file: Path) -> str:
    try:
        return os.path.relpath(file.resolve(), folder.resolve())
    except ValueError:  # another drive, on Windows
        return str(file.resolve())


def read_parameters(path: Path) -> Mapping[str, Any]:
    """The values of the file; none where it is missing.

    Raises: StoreError: it is cut off, no YAML, or more than plain values of a size that a parameter file may have.
    """
    try:
        require_whole(path)
        return read_plain_yaml(path)
    except FileNotFoundError:
        return {}
    except ConfigError as error:
        raise StoreError(f"{error} {RUN_AGAIN}") from error


def require_whole(path: Path) -> None:
    """Raises: StoreError: the file says that it has an end, and has none; older ones do not say."""
    data = read_file(path)
    if data.startswith(HEADER.encode()) and not data.endswith(b"\n" + END.encode()):
        raise StoreError(f"{path}: is cut off. {RUN_AGAIN}")
