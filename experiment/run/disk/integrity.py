"""Whether what lies on the disk is what was written, or damaged by a power cut or a bad disk. No torch here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zlib import crc32

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, model_validator

from experiment.errors import StoreError
from experiment.escaping import json_text
from experiment.files import read_json, write_whole
from experiment.run.grid.keys import FORMAT_VERSION

log = logging.getLogger("experiment")

RECORD = "files.json"  # of a trained network's folder; a cell's result.json holds them itself
Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]


def sizes_of(folder: Path) -> dict[str, int]:
    """Name -> bytes of the files that are in a folder now."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def sums_of(folder: Path) -> dict[str, int]:
    """Name -> CRC-32 of the files that are in a folder now, but for those of torch, which hold their own."""
    return {path.name: crc32(path.read_bytes()) for path in sorted(folder.iterdir()) if path.suffix != ".pt"}


def first_damaged(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """The first file that is not what was written; one that is gone was removed by somebody.

    Args:
        record: `files` and `sums`, as `sizes_of` and `sums_of` found them then; what is missing is not checked.
    """
    for name, size in _names(record, "files"):
        if (folder / name).is_file() and (folder / name).stat().st_size != size:
            return folder / name
    for name, content in _names(record, "sums"):
        if (folder / name).is_file() and crc32((folder / name).read_bytes()) != content:
            return folder / name
    return None


def _names(record: Mapping[str, Any], kind: str) -> list[tuple[str, object]]:
    found = record.get(kind)
    return [(Path(str(name)).name, value) for name, value in found.items()] if isinstance(found, Mapping) else []


def whole_file_of(place: Path, name: str) -> Path | None:
    """A file of a cell's folder; None where it is missing, or damaged, which is told."""
    path = place / name
    if not path.is_file():
        return None
    record = read_record(place / "result.json")
    own = {kind: {n: value for n, value in _names(record, kind) if n == name} for kind in ("files", "sums")}
    if first_damaged(place, own) is None:
        return path
    left_out(path)
    return None


def left_out(path: Path) -> None:
    """Tell that a file is damaged, and that what is being made goes without it."""
    log.warning("%s is damaged: left out. Run the experiment again to make it anew.", path)


class Result(BaseModel):
    """result.json as far as others rely on it; what is beside that stays as it is."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)

    status: Literal["done", "failed", "infeasible"]
    files: dict[str, Count] = {}
    error: InstanceOf[str] | None = None  # any text: that of a raised error need not be Unicode
    parameters: Count | None = None
    flops: Count | None = None
    flops_unmasked: Count | None = None
    bytes_dense: Count | None = None
    bytes_values: Count | None = None
    bytes_sparse: Count | None = None
    bytes_file: Count | None = None
    epochs: Annotated[float, Field(ge=0)] | None = None  # of a search, parts of one
    loss: float | None = None
    top1: Share | None = None
    top5: Share | None = None
    top1_before_retraining: Share | None = None
    seconds_compress: float | None = None
    seconds_retrain: float | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Result:
        if self.status == "done" and None in (self.parameters, self.flops, self.top1):
            raise ValueError("a cell that is done has counts and an accuracy")
        return self


def is_result(found: object) -> bool:
    """Whether the content of a result.json is one, as far as others rely on it."""
    try:
        Result.model_validate(found)
    except ValidationError:
        return False
    return True


def write_record(folder: Path) -> None:
    """Leave the sizes and sums of its files in a folder."""
    content = {"format": FORMAT_VERSION, "files": sizes_of(folder), "sums": sums_of(folder)}
    write_whole(folder / RECORD, json_text(content, indent=1) + "\n")


def read_record(path: Path) -> Mapping[str, Any]:
    """A file with `files` and `sums` in it; nothing where there is none, or it is damaged itself."""
    try:
        found = read_json(path)
    except (OSError, StoreError):
        return {}
    return found if isinstance(found, dict) else {}
