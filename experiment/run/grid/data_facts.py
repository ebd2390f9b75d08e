"""`data.json` in a results folder: stamps of the data (see `data_stamps`) and facts for reports."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from experiment.errors import Damaged
from experiment.escaping import json_text, one_line
from experiment.files import read_json, write_whole
from experiment.run.grid.keys import FORMAT_VERSION

REMEMBERED = "data.json"
MOST_CLASSES = 10  # whose names are stored

Count = Annotated[int, Field(ge=0, lt=2**63)]
Line = Annotated[str, BeforeValidator(lambda text: one_line(text) if isinstance(text, str) else text)]


class DataFacts(BaseModel):
    """One dataset: number of inputs per part, first class names, warnings."""

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
    """One entry per dataset, with the warnings of all its transforms."""
    by_dataset: dict[str, list[DataFacts]] = {}
    for each in facts:
        by_dataset.setdefault(each.model_copy(update={"warnings": []}).model_dump_json(), []).append(each)
    return [
        same[0].model_copy(update={"warnings": list(dict.fromkeys(text for each in same for text in each.warnings))})
        for same in by_dataset.values()
    ]


class DataRecord(BaseModel):
    """The content of data.json."""

    model_config = ConfigDict(strict=True, frozen=True)

    format: int = FORMAT_VERSION
    stamps: dict[str, str] = {}
    data: list[DataFacts] = []


def read_data_record(folder: Path) -> DataRecord:
    """The record in a results folder; an empty one if there is none, or only a damaged one."""
    try:
        found = DataRecord.model_validate(read_json(folder / REMEMBERED))
    except (OSError, Damaged, ValidationError):
        return DataRecord()
    return found if found.format == FORMAT_VERSION else DataRecord()


def remember_data(
    folder: Path, *, stamps: Mapping[str, str] | None = None, data: Sequence[DataFacts] | None = None
) -> None:
    """Update the record in a results folder; None leaves a part unchanged."""
    before = read_data_record(folder)
    now = DataRecord(
        stamps=before.stamps if stamps is None else dict(stamps), data=before.data if data is None else list(data)
    )
    if now != before:
        write_whole(folder / REMEMBERED, json_text(now.model_dump(), indent=1) + "\n")
