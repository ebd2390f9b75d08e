"""parameters.yaml of an experiment's folder: the resolved settings that its results were computed with. No torch here.

All defaults are filled in, the retraining block holds what it takes from the training block, and every variant lists
the settings in which it differs. Readers derive nothing.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from experiment.config import ParameterFile, Parameters, read_plain_yaml
from experiment.config.modes import base_mode, retraining, rewinding
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


@dataclass(frozen=True)
class VariantSettings:
    """One variant of an experiment.

    Attributes:
        name: as in results.csv, such as `retraining.startEpoch=91`; empty for the file itself.
        sets: block -> key -> value, where the variant differs from the file; top-level keys have no block.
        parameters: all settings of the variant.
    """

    name: str
    sets: Mapping[str, Any]
    parameters: Parameters


@dataclass(frozen=True)
class ExperimentSettings:
    """The resolved settings of an experiment: those of the file, and one entry per variant."""

    parameters: Parameters
    variants: tuple[VariantSettings, ...]


def write_parameters(folder: Path, file: ParameterFile, lock: Path) -> None:
    """Write the resolved settings of a parameter file into the experiment's folder, and which file they come from.

    Raises: StoreError: the folder holds the results of another file.
    """
    # not `json_text`, which escapes: a file name that is not UTF-8 must be read back unchanged
    owner = json.dumps({"file": _path_from(folder, file.path), "set": list(file.overrides)})
    head = f"{HEADER}\n{OWNER}{owner}\n# Resolved: includes, overrides and defaults are filled in.\n"
    content = head + yaml.safe_dump(_resolved(file), sort_keys=False)  # takes long, and many may wait for the lock
    with locked(lock, "writes parameters.yaml"):
        require_own(folder, file.path)
        write_whole(folder / PARAMETERS, content)


def _resolved(file: ParameterFile) -> dict[str, Any]:
    values = _values(file.parameters)
    variants = [{"name": each.name, "sets": _differences(values, _values(each.parameters))} for each in file.variants]
    return values | {"variants": variants}


def _values(p: Parameters) -> dict[str, Any]:
    """All settings as plain values; the mode is split into the base mode and the weights that are retrained."""
    values = p.model_dump(by_alias=True, exclude={"customizations"})
    values["retraining"] = retraining(p).model_dump(by_alias=True)
    values["experiments"] |= {"mode": base_mode(p.experiments), "rewind": rewinding(p.experiments)}
    return values


def _differences(base: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in variant.items() if value != base[key]}
    return {
        key: {k: v for k, v in value.items() if v != base[key][k]} if isinstance(value, dict) else value
        for key, value in changed.items()
    }


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


def read_parameters(folder: Path) -> ExperimentSettings:
    """The resolved settings of an experiment.

    Raises: StoreError: the folder has no parameters.yaml, or it does not hold such settings.
    """
    path = folder / PARAMETERS
    try:
        values = dict(read_plain_yaml(path))
        variants = values.pop("variants")
        return ExperimentSettings(
            Parameters.model_validate(values),
            tuple(VariantSettings(each["name"], each["sets"], _variant(values, each["sets"])) for each in variants),
        )
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file. {RUN_AGAIN}") from error
    except ConfigError as error:
        raise StoreError(f"{error} {RUN_AGAIN}") from error
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: does not hold the resolved settings of an experiment. {RUN_AGAIN}") from error


def _variant(values: Mapping[str, Any], sets: Mapping[str, Any]) -> Parameters:
    merged = {key: {**values[key], **own} if isinstance(own, Mapping) else own for key, own in sets.items()}
    return Parameters.model_validate({**values, **merged})
