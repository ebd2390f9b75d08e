"""What is known of an experiment's data, kept in `data.json` beside its results: stamps, and facts for reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from experiment.errors import Damaged
from experiment.escaping import json_text, one_line
from experiment.files import read_json, write_whole
from experiment.run.grid.keys import FORMAT_VERSION

REMEMBERED = "data.json"
MOST_CLASSES = 10  # whose names are kept

Count = Annotated[int, Field(ge=0, lt=2**63)]
Line = Annotated[str, BeforeValidator(lambda text: one_line(text) if isinstance(text, str) else text)]


class DataFacts(BaseModel):
    """One dataset in numbers: its parts in inputs, its first classes by name, what looks wrong with it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    dataset: Line
    root: Line
    training: Count
    validation: Count
    test: Count
    num_classes: Count
    classes: list[Line]
    warnings: list[Line]


def merged(facts: Iterable[DataFacts]) -> list[DataFacts]:
    """One entry a dataset, with the warnings of all its transforms."""
    by_dataset: dict[str, list[DataFacts]] = {}
    for each in facts:
        by_dataset.setdefault(each.model_copy(update={"warnings": []}).model_dump_json(), []).append(each)
    return [
        same[0].model_copy(update={"warnings": list(dict.fromkeys(text for each in same for text in each.warnings))})
        for same in by_dataset.values()
    ]


class _Remembered(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    format: int
    stamps: dict[str, str] = {}
    data: list[DataFacts] = []


def remember_data(
    folder: Path, *, stamps: Mapping[str, str] | None = None, data: Sequence[DataFacts] | None = None
) -> None:
    """Leave what is known of an experiment's data beside its results; what is not given stays as it is."""
    before = _read(folder)
    now = _Remembered(
        format=FORMAT_VERSION,
        stamps=before.stamps if stamps is None else dict(stamps),
        data=before.data if data is None else list(data),
    )
    if now != before:
        write_whole(folder / REMEMBERED, json_text(now.model_dump(), indent=1) + "\n")


def remembered_stamps(folder: Path) -> dict[str, str]:
    """The stamps of an experiment's data when it was last run; none where nothing says so."""
    return _read(folder).stamps


def remembered_data(folder: Path) -> list[DataFacts]:
    """The datasets of an experiment as they were when it last computed; none where nothing says so."""
    return _read(folder).data


def _read(folder: Path) -> _Remembered:
    """What data.json holds; nothing where there is none, or a damaged one or one of another version."""
    try:
        found = _Remembered.model_validate(read_json(folder / REMEMBERED))
    except (OSError, Damaged, ValidationError):
        return _Remembered(format=FORMAT_VERSION)
    return found if found.format == FORMAT_VERSION else _Remembered(format=FORMAT_VERSION)
