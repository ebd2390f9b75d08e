"""What was measured on deployed networks and exported files: JSON files beside a cell's result. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiment.errors import Damaged
from experiment.files import read_json
from experiment.run.disk.damaged_files import FileRecord
from experiment.run.grid.data_facts import Count
from experiment.run.grid.keys import FORMAT_VERSION

LATENCY, MEMORY, BYTES, NOISE, EXPORT = (f"{n}.json" for n in ("latency", "memory", "bytes", "noise", "export"))
SENSITIVITY = "sensitivity.json"


class _Content(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)


class _Batch(_Content):
    batch: Annotated[int, Field(ge=1, lt=2**63)]


class _BatchMedian(_Batch):
    median_ms: float


class _BatchLatency(_BatchMedian):
    layout: str
    iqr_ms: float


class _Latency(_Content):
    format: int
    device: str
    threads: Annotated[int, Field(ge=1, lt=2**63)]
    batches: list[_BatchLatency]


class _Bytes(_Content):
    format: int
    bytes_bitmask: Count
    bytes_csr: Count
    sparse_format: str


class _NoiseLevel(_Content):
    eps: float
    agreement: float
    distance: float
    excess_error: float


class _Noise(_Content):
    format: int
    levels: list[_NoiseLevel]


class _BatchMemory(_Batch):
    peak: Count


class _Memory(_Content):
    format: int
    weights: Count
    batches: list[_BatchMemory]


class _Exported(_Content):
    error: str
    missing: str
    files: dict[str, FileRecord] = {}
    tests: list[dict[str, float]] = []
    latency: list[_BatchMedian] = []


class _Export(_Content):
    format: int
    formats: dict[str, _Exported]


class _Unit(_Content):
    layers: Annotated[list[str], Field(min_length=1)]
    parameters: Count
    figures: dict[str, float | None]


class _OfMethod(_Content):
    error: str
    units: list[_Unit]


class _Sensitivity(_Content):
    format: int
    samples: Count
    figure: float
    methods: dict[str, _OfMethod]


_MODELS: Mapping[str, type[BaseModel]] = {
    LATENCY: _Latency, MEMORY: _Memory, BYTES: _Bytes, NOISE: _Noise, EXPORT: _Export, SENSITIVITY: _Sensitivity,
}  # fmt: skip


def read_measurement(path: Path) -> dict[str, Any] | None:
    """A measurement; None if its file is missing, damaged or of another version, and it is to be made again."""
    try:
        found = read_json(path)
        _MODELS[path.name].model_validate(found)
    except (FileNotFoundError, Damaged, ValidationError):
        return None
    return dict(found) if found["format"] == FORMAT_VERSION else None
