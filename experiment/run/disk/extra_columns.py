"""What is measured on finished networks because a parameter file asks for it, and its columns. No torch here.

It lies beside a cell's result, in files of its own, and is no part of any key: it may be asked for later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiment.config import Experiments
from experiment.errors import Damaged
from experiment.files import read_json
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.plan import Cell, ExperimentPlan

LATENCY, BYTES = "latency.json", "bytes.json"
BYTE_COLUMNS = ("bytes_bitmask", "bytes_csr", "sparse_format")


def asking(plan: ExperimentPlan, what: str) -> dict[str, Experiments]:
    """The names of the variants that ask for a measurement, with their settings."""
    found = {variant.name: variant.parameters.experiments for variant in plan.file.variants}
    return {name: experiments for name, experiments in found.items() if what in experiments.measure}


def extra_columns(plan: ExperimentPlan) -> tuple[str, ...]:
    """The columns that stand at the end of results.csv because a variant asks for them."""
    latency = asking(plan, "latency").values()
    batches = list(dict.fromkeys(batch for experiments in latency for batch in experiments.latency_batches))
    columns = [f"latency_{what}_b{batch}{of}" for batch in batches for what, of in _MEASURED]
    return (*columns, *(["latency_device"] if batches else []), *(BYTE_COLUMNS if asking(plan, "bytes") else ()))


_MEASURED = (("ms", ""), ("iqr_ms", ""), ("layout", ""), ("ms", "_reference"))


def extra_values(folder: Path, reference: Path | None) -> dict[str, Any]:
    """What was measured on a cell's network, by column, beside the latency of its reference network."""
    times, own, sizes = _latencies(reference), read_extra(folder / LATENCY) or {}, read_extra(folder / BYTES) or {}
    values: dict[str, Any] = {f"latency_ms_b{batch}_reference": ms["median_ms"] for batch, ms in times.items()}
    for batch, ms in _latencies(folder).items():
        values |= {f"latency_ms_b{batch}": ms["median_ms"], f"latency_iqr_ms_b{batch}": ms["iqr_ms"]}
        values[f"latency_layout_b{batch}"] = ms["layout"]
    if own:
        threads = own["threads"]
        values["latency_device"] = f"{own['device']}, {threads} thread{'s' if threads != 1 else ''}"
    return values | {column: sizes.get(column) for column in BYTE_COLUMNS}


class Batch(BaseModel):
    """The latency of one batch size."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)

    batch: Annotated[int, Field(ge=1, lt=2**63)]
    layout: str
    median_ms: float
    iqr_ms: float


class Latency(BaseModel):
    """latency.json as far as others rely on it."""

    model_config = ConfigDict(extra="allow", strict=True)

    device: str
    threads: Annotated[int, Field(ge=1, lt=2**63)]
    batches: list[Batch]


class Sizes(BaseModel):
    """bytes.json as far as others rely on it."""

    model_config = ConfigDict(extra="allow", strict=True)

    bytes_bitmask: Annotated[int, Field(ge=0, lt=2**63)]
    bytes_csr: Annotated[int, Field(ge=0, lt=2**63)]
    sparse_format: str


def read_extra(path: Path) -> dict[str, Any] | None:
    """A measurement; None where there is none, or a damaged one or one of another version, which is made again."""
    try:
        found = read_json(path)
        (Latency if path.name == LATENCY else Sizes).model_validate(found)
    except (FileNotFoundError, Damaged, ValidationError):
        return None
    return dict(found) if found.get("format") == FORMAT_VERSION else None


def done_folders(plan: ExperimentPlan, what: str, folders: Mapping[str, Path], done: set[str]) -> dict[str, Cell]:
    """Key -> cell of the finished networks that a measurement is asked for; references too."""
    asked = asking(plan, what)
    return {c.key: c for c in plan.cells if c.variant in asked and c.key in done and c.key in folders}


def _latencies(folder: Path | None) -> dict[int, dict[str, Any]]:
    found = None if folder is None else read_extra(folder / LATENCY)
    return {row["batch"]: row for row in found["batches"]} if found else {}
