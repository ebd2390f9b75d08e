"""sensitivity.csv: what the compression of every layer alone costs at every keep ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiment.config import Parameters
from experiment.escaping import csv_table
from experiment.files import write_whole
from experiment.methods.configure import MethodSpec
from experiment.run.disk.measurements import SENSITIVITY, read_measurement
from experiment.run.disk.results_table import requested
from experiment.run.disk.store import Store
from experiment.run.grid.cells import ReferenceTask
from experiment.run.grid.keys import digest, method_key
from experiment.run.grid.methods import REFERENCE
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.grid.task_name import metric_facts

TABLE = "sensitivity.csv"
COLUMNS = (
    "variant", "net", "label", "layers", "parameters", "keep", "metric", "figure", "reference", "loss", "samples",
    "note",
)  # fmt: skip


def sensitivity_key(spec: MethodSpec, p: Parameters) -> str:
    """Identifies the measurements of a method in a file of a reference network, whatever its label."""
    return digest({"method": method_key(spec), "coresets": p.coresets.model_dump(mode="json", exclude_defaults=True)})


def keep_name(keep: float) -> str:
    """A keep ratio as the name of its figure."""
    return f"{keep:.6g}"


def write_sensitivity_table(store: Store, plan: ExperimentPlan, refused: Mapping[str, str]) -> None:
    """Write sensitivity.csv; without `measure: [sensitivity]` there is none.

    Args:
        refused: label -> why the method has no sensitivity.
    """
    variants, folders = requested(plan, "sensitivity"), store.cell_folders()
    if not variants:
        (store.folder / TABLE).unlink(missing_ok=True)
        return
    rows: list[dict[str, Any]] = []
    for task in plan.references:
        folder = folders.get(task.cell.key)
        found = None if folder is None else read_measurement(folder / SENSITIVITY)
        if found is not None and task.variant.name in variants:
            rows += _rows_of(task, plan.methods, found, refused)
    write_whole(store.folder / TABLE, csv_table(COLUMNS, [dict.fromkeys(COLUMNS, "") | row for row in rows]))


def _rows_of(
    task: ReferenceTask, methods: Sequence[MethodSpec | None], found: Mapping[str, Any], refused: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    p, whole = task.variant.parameters, found["figure"]
    common = {"variant": task.variant.name, "net": task.cell.net, "metric": metric_facts(p)["metrics"][0]}
    common |= {"reference": whole, "samples": found["samples"]}
    for spec in (spec for spec in methods if spec is not None and spec.entry.label != REFERENCE):
        own = common | {"label": spec.label}
        measured = found["methods"].get(sensitivity_key(spec, p), {"error": refused.get(spec.label, ""), "units": []})
        if measured["error"]:
            yield own | {"note": measured["error"]}
        for unit in measured["units"]:
            about = own | {"layers": " ".join(unit["layers"]), "parameters": unit["parameters"]}
            for keep in p.experiments.sensitivity_keeps:
                if (figure := unit["figures"].get(keep_name(keep))) is not None:
                    yield about | {"keep": keep, "figure": figure, "loss": _loss(whole, figure, p)}


def _loss(reference: float, figure: float, p: Parameters) -> float:
    """How much worse a figure is: a difference of fractions, else a share of the reference's."""
    facts = metric_facts(p)
    worse = reference - figure if facts["better"] == "higher" else figure - reference
    return worse if facts["unit"] == "fraction" else worse / abs(reference) if reference else math.nan
