"""The record of the parts of a cell that are finished: written after each, read by a process that continues."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from experiment.errors import Damaged, log
from experiment.escaping import json_text
from experiment.files import read_json, set_aside, write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")


def write_records(path: Path, parts: Sequence[Part]) -> None:
    """Write all parts that are finished, in order."""
    write_whole(path, json_text([asdict(part) for part in parts], indent=1) + "\n")


def read_records(path: Path, kind: TypeAdapter[list[Part]]) -> list[Part]:
    """The parts in a file; none if it is missing, or damaged and set aside."""
    try:
        return kind.validate_python(read_json(path))
    except FileNotFoundError:
        return []
    except (Damaged, ValidationError):
        log.warning("%s is damaged; renamed to %s.", path, set_aside(path).name)
        return []
