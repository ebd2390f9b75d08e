"""Whether what lies on the disk is what was written, or shortened by a power cut or a bad disk. No torch here."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, model_validator

from experiment.errors import Damaged, StoreError
from experiment.files import read_json, write_whole
from experiment.run.keys import FORMAT_VERSION

log = logging.getLogger("experiment")

SIZES = "files.json"  # of a trained network's folder; a cell's result.json holds them itself
Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]


def sizes_of(folder: Path) -> dict[str, int]:
    """Name -> bytes of the files that are in a folder now."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def first_cut(folder: Path, sizes: Mapping[str, object]) -> Path | None:
    """The first file that has another size than when it was written; one that is gone was removed by somebody."""
    for name, size in sizes.items():
        path = folder / Path(str(name)).name
        if path.is_file() and path.stat().st_size != size:
            return path
    return None


def whole_file_of(place: Path, name: str) -> Path | None:
    """A file of a cell's folder; None where it is missing, or cut off, which is told."""
    path = place / name
    if not path.is_file():
        return None
    try:
        sizes = read_json(place / "result.json")["files"]
        whole = path.stat().st_size == sizes.get(name, path.stat().st_size)
    except (OSError, StoreError, KeyError, TypeError, AttributeError):
        whole = True  # an older version says nothing of sizes; what is wrong with result.json is told elsewhere
    if not whole:
        log.warning("%s is cut off: left out. Run the experiment again to make it anew.", path)
    return path if whole else None


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


def write_sizes(folder: Path) -> None:
    """Leave the sizes of its files in a folder."""
    text = json.dumps({"format": FORMAT_VERSION, "files": sizes_of(folder)}, indent=1)
    write_whole(folder / SIZES, text + "\n")


def read_sizes(folder: Path) -> Mapping[str, object]:
    """What `write_sizes` left; nothing where an older version wrote the folder, or the file is damaged itself."""
    try:
        found = read_json(folder / SIZES)
    except (FileNotFoundError, Damaged):
        return {}
    sizes = found.get("files") if isinstance(found, dict) else None
    return sizes if isinstance(sizes, dict) else {}
