"""What is measured on finished networks because a parameter file asks for it, and its columns. No torch here.

It lies beside a cell's result, in files of its own, and is no part of any key: it may be asked for later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment.config import Experiments
from experiment.run.keys import FORMAT_VERSION
from experiment.run.plan import Cell, ExperimentPlan

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


def read_extra(path: Path) -> dict[str, Any] | None:
    """A measurement; None where there is none, or a damaged one or one of another version, which is made again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT_VERSION:
        return None
    return found if (_is_latency(found) if path.name == LATENCY else found.keys() >= set(BYTE_COLUMNS)) else None


def _is_latency(found: Mapping[str, Any]) -> bool:
    rows = found.get("batches")
    columns = {"batch", "median_ms", "iqr_ms", "layout"}
    whole = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= columns for row in rows)
    return whole and isinstance(found.get("device"), str) and isinstance(found.get("threads"), int)


def done_folders(plan: ExperimentPlan, what: str, folders: Mapping[str, Path], done: set[str]) -> dict[str, Cell]:
    """Key -> cell of the finished networks that a measurement is asked for; references too."""
    asked = asking(plan, what)
    return {c.key: c for c in plan.cells if c.variant in asked and c.key in done and c.key in folders}


def _latencies(folder: Path | None) -> dict[int, dict[str, Any]]:
    found = None if folder is None else read_extra(folder / LATENCY)
    return {row["batch"]: row for row in found["batches"]} if found else {}
