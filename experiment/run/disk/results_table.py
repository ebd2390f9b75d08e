"""results.csv: one row per finished cell, with what was measured on deployed networks and exported files.

Measurements are separate files next to a cell's result, no part of any key, so that they can be requested later. Does
not import torch.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.config import Experiments
from experiment.deploy.formats import FORMATS
from experiment.errors import Damaged, shortened
from experiment.escaping import csv_table, reason
from experiment.files import RUN_AGAIN, read_file, remove_all, write_whole
from experiment.run.disk.measurements import BYTES, EXPORT, LATENCY, MEMORY, NOISE, read_measurement
from experiment.run.disk.pareto import mark_pareto
from experiment.run.disk.store import Store
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.grid.task_name import metric_facts

if TYPE_CHECKING:
    from pandas import DataFrame

AGREEMENT = ("flips", "kl", "worst_class_drop")
_BEFORE_METRICS = (
    "dataset", "dataset_test", "network", "variant", "method", "label", "net", "repetition", "keep_target",
    "parameters", "flops", "flops_unmasked", "keep_parameters", "keep_flops",
    "bytes_dense", "bytes_values", "bytes_sparse", "bytes_file", "loss",
)  # fmt: skip
LATER_COLUMNS = ("primary", "better", "unit", *AGREEMENT, "pareto")  # not in tables of earlier versions
_AFTER_METRICS = (
    "parameters_reference", "flops_reference", "epochs", "seconds_compress", "seconds_retrain", "status", "error",
    "cell", "hardware", *LATER_COLUMNS,
)  # fmt: skip
SHARED_COLUMNS = (*_BEFORE_METRICS, *_AFTER_METRICS)  # of all tasks
CLASSIFICATION = ("top1", "top5")  # the metrics of a cell that does not name them, and of a table without results
TUNING = ("tuned", "seconds_tune")
AMOUNT = ("limit", "predicted", "measured")
NOISE_FIGURES = ("agreement", "distance", "excess_error")
BYTE_COLUMNS = ("bytes_bitmask", "bytes_csr", "sparse_format")
OTHER_COLUMNS = re.compile(
    rf"(valid|keep|latency|noise|memory|frames_per_second)_.*|.*_(reference|before_retraining|{'|'.join(FORMATS)})"
)  # made from other names
MAX_FIELDS = 10_000_000  # of a table that is read


def columns_of(tasks: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The columns of results.csv.

    Args:
        tasks: the metrics of every task in the table, the primary one first.
    """
    metrics: list[str] = []
    for names in tasks:
        metrics += [*names, f"{names[0]}_before_retraining", f"{names[0]}_reference"]
    return (*_BEFORE_METRICS, *dict.fromkeys(metrics), *_AFTER_METRICS)


COLUMNS = columns_of([CLASSIFICATION])


def write_results_table(store: Store, plan: ExperimentPlan) -> dict[str, dict[str, Any]]:
    """Write results.csv in grid order; returns the results by key."""
    store.results(plan.cells)  # most is read before others have to wait
    with store.lock("table", "writes results.csv"):  # or an older reading could overwrite a newer one
        remove_all(store.folder.glob(".results.csv.*"))  # left by killed processes
        results = store.results(plan.cells)
        found = dict.fromkeys(_metrics(result) for result in results.values() if result["status"] == "done")
        tasks = [*found] or [metric_facts(v.parameters)["metrics"] for v in plan.file.variants]
        extra = _extra_columns(plan, dict.fromkeys(name for names in tasks for name in names))
        folders = store.cell_folders() if extra else {}
        references = {(t.variant.name, t.cell.net): folders.get(t.cell.key) for t in plan.references}
        rows = []
        columns = columns_of(tasks)
        for row, test in _rows(plan, results):
            folder = folders.get(row["cell"])
            values = _extra_values(folder, references[row["variant"], row["net"]]) | _exported_values(folder, test)
            rows.append(dict.fromkeys(columns, "") | {column: values.get(column) for column in extra} | row)
        mark_pareto(rows)
        write_whole(store.folder / "results.csv", csv_table((*columns, *extra), rows))
    return results


def _rows(plan: ExperimentPlan, results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """What was measured in each cell on each test set, beside the figures of its reference network; and which set."""
    references = {(t.variant.name, t.cell.net): results.get(t.cell.key, {}) for t in plan.references}
    parameters = {variant.name: variant.parameters for variant in plan.file.variants}
    for cell in plan.cells:
        result = results.get(cell.key)
        if result is None:
            continue
        reference, p = references[cell.variant, cell.net], parameters[cell.variant]
        about = next((each for each in (result, reference) if "metrics" in each), None) or metric_facts(p)
        metrics = _metrics(about)
        primary = metrics[0]
        row = {column: result.get(column) for column in columns_of([metrics])}
        row |= {
            "dataset": p.network.dataset.shown, "network": p.network.name,
            "variant": cell.variant, "method": cell.method, "label": cell.label, "net": cell.net,
            "repetition": cell.repetition, "keep_target": cell.keep_target, "cell": cell.key,
            "parameters_reference": reference.get("parameters"),
            "flops_reference": reference.get("flops"), "primary": primary,
            "better": about.get("better", "higher"), "unit": about.get("unit", "fraction"),
        }  # fmt: skip
        row["error"] = None if row["error"] is None else reason(str(row["error"]))
        for quantity in ("parameters", "flops"):
            count, original = result.get(quantity), reference.get(quantity)
            row[f"keep_{quantity}"] = count / original if count is not None and original else None
        for i, test in enumerate(p.test_sets):
            figures = _figures(result, i)
            row |= {name: figures.get(name) for name in ("loss", *metrics, f"{primary}_before_retraining", *AGREEMENT)}
            row |= {"dataset_test": test.shown, f"{primary}_reference": _figures(reference, i).get(primary)}
            row |= _amounts(result) | {column: result[column] for column in TUNING if column in result}
            yield {column: "" if value is None else value for column, value in row.items()}, i


def _amounts(result: Mapping[str, Any]) -> dict[str, float]:
    """Limit, predicted and measured value of every limited quantity; latency in milliseconds."""
    return {
        f"{what}_{quantity}": value
        for quantity, amount in result.get("amounts", {}).items()
        for what, value in amount.items()
    }


def _figures(result: Mapping[str, Any], test: int) -> Mapping[str, Any]:
    """The figures on one of the test sets."""
    tests = result.get("tests") or [result]
    return tests[test] if test < len(tests) else {}


def _metrics(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the metrics in a result, the primary one first."""
    return tuple(result.get("metrics", CLASSIFICATION))


def requested(plan: ExperimentPlan, measurement: str) -> dict[str, Experiments]:
    """The variants that request a measurement: name -> settings."""
    settings = {variant.name: variant.parameters.experiments for variant in plan.file.variants}
    return {name: experiments for name, experiments in settings.items() if measurement in experiments.measure}


def _extra_columns(plan: ExperimentPlan, metrics: Iterable[str]) -> tuple[str, ...]:
    batches = dict.fromkeys(b for e in requested(plan, "latency").values() for b in e.latency_batches)
    columns: list[str] = []
    for batch in batches:
        columns += [f"latency_{what}_b{batch}" for what in ("ms", "iqr_ms", "layout")]
        columns += [f"latency_ms_b{batch}_reference", f"frames_per_second_b{batch}"]
    if batches:
        columns.append("latency_device")
    batches = dict.fromkeys(b for e in requested(plan, "memory").values() for b in e.latency_batches)
    columns += ["memory_weights", *(f"memory_b{batch}" for batch in batches)] if batches else []
    levels = dict.fromkeys(eps for e in requested(plan, "noise").values() for eps in e.noise_levels)
    columns += [f"noise_{what}_{eps:g}" for what in NOISE_FIGURES for eps in levels]
    every = [variant.parameters.experiments for variant in plan.file.variants]
    budgets = [e.budget for e in every if e.budget.counted is None]
    limited = dict.fromkeys(limit.quantity for budget in budgets for limit in budget.limits)
    columns += [f"{what}_{quantity}" for quantity in limited for what in AMOUNT]
    columns += TUNING * any(variant.parameters.retraining.tune is not None for variant in plan.file.variants)
    columns += BYTE_COLUMNS * bool(requested(plan, "bytes"))
    batches = dict.fromkeys(batch for e in every if e.export for batch in e.latency_batches)
    for name in dict.fromkeys(name for e in every for name in e.export):
        columns += [f"{what}_{name}" for what in (*metrics, "loss", "bytes", "difference")]
        columns += [*(f"latency_{name}_b{b}" for b in batches), f"error_{name}"]
    return tuple(columns)


def _extra_values(folder: Path | None, reference: Path | None) -> dict[str, Any]:
    """Column -> value of what was measured on a deployed network, beside the latency of its reference network."""
    if folder is None:
        return {}
    values: dict[str, Any] = {}
    before = None if reference is None else read_measurement(reference / LATENCY)
    for row in [] if before is None else before["batches"]:
        values[f"latency_ms_b{row['batch']}_reference"] = row["median_ms"]
    latency = read_measurement(folder / LATENCY) or {"batches": []}
    for row in latency["batches"]:
        batch, median = row["batch"], row["median_ms"]
        values[f"latency_ms_b{batch}"], values[f"latency_iqr_ms_b{batch}"] = median, row["iqr_ms"]
        values[f"latency_layout_b{batch}"] = row["layout"]
        values[f"frames_per_second_b{batch}"] = round(1000 * batch / median, 1) if median > 0 else None
    if threads := latency.get("threads"):
        values["latency_device"] = f"{latency['device']}, {threads} thread{'s' if threads != 1 else ''}"
    if (memory := read_measurement(folder / MEMORY)) is not None:
        values |= {
            "memory_weights": memory["weights"],
            **{f"memory_b{r['batch']}": r["peak"] for r in memory["batches"]},
        }
    noise = read_measurement(folder / NOISE) or {"levels": []}
    values |= {f"noise_{what}_{row['eps']:g}": row[what] for row in noise["levels"] for what in NOISE_FIGURES}
    sizes = read_measurement(folder / BYTES) or {}
    return values | {column: sizes.get(column) for column in BYTE_COLUMNS}


def _exported_values(folder: Path | None, test: int) -> dict[str, Any]:
    """Column -> value of what exported files gave in their runtimes on one of the test sets."""
    found = None if folder is None else read_measurement(folder / EXPORT)
    values: dict[str, Any] = {}
    for name, record in ({} if found is None else found["formats"]).items():
        figures = record.get("tests", [])[test : test + 1] or [{}]
        values |= {f"{what}_{name}": figure for what, figure in figures[0].items()}
        values |= {f"{what}_{name}": record.get(what) for what in ("bytes", "difference")}
        values |= {f"latency_{name}_b{row['batch']}": row["median_ms"] for row in record.get("latency", ())}
        values[f"error_{name}"] = reason(record["error"]) or None
    return values


def read_table(path: Path, **options: Any) -> DataFrame:
    """Read a CSV table of results.

    Args:
        options: of `pandas.read_csv`.
    Raises: as `read_file`; Damaged also if it is not a table, is empty, or ends within a line.
    """
    import pandas as pd

    data = read_file(path)
    if not data:
        raise Damaged(f"{path}: is not a table of results: it is empty. {RUN_AGAIN}")
    if not data.endswith(b"\n"):
        raise Damaged(f"{path}: is truncated in its last line. {RUN_AGAIN}")
    lines, columns = data.count(b"\n") + data.count(b"\r"), data.partition(b"\n")[0].count(b",") + 1
    if lines * columns > MAX_FIELDS:  # pandas pads short lines to the length of the first
        raise Damaged(f"{path}: has {lines:,} lines of {columns:,} columns. At most {MAX_FIELDS:,} fields are read.")
    try:
        table: DataFrame = pd.read_csv(io.BytesIO(data), **options)
    except Exception as error:  # pandas documents no complete list of what damaged files raise
        first_line = shortened(str(error).strip().partition("\n")[0])
        raise Damaged(f"{path}: is not a table of results: {first_line}. {RUN_AGAIN}") from error
    return table
