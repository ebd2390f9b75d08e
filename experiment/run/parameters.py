"""parameters.yaml of an experiment's folder: what its results were made with, as plain values. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment.config import read_plain_yaml
from experiment.errors import ConfigError, StoreError
from experiment.files import RUN_AGAIN, read_file

PARAMETERS = "parameters.yaml"
HEADER = "# format 1, ends with a line of three dots"
END = "...\n"  # YAML's own mark of an end: without it a file that was cut off may look whole


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
