"""What compression costs in computing time, and which networks are on the Pareto front of figure and cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from experiment.report.document import Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import by_metric
from experiment.report.results_folder import Source
from experiment.report.results_table import GROUP, compressed, latency_columns, tidy
from experiment.report.words import numbers
from experiment.report.words.titles import column_title, joined
from experiment.run.disk.pareto import SECONDS

if TYPE_CHECKING:
    from pandas import DataFrame

STAGES = dict(zip(SECONDS, ("Compression", "Retraining", "Tuning"), strict=True))
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("Parameters", numbers.whole),
    "flops": ("FLOPs", numbers.megas),
    "bytes_sparse": ("Sparse (kB)", numbers.kilobytes),
    "bytes_file": ("File (kB)", numbers.kilobytes),
    "seconds": ("Time", numbers.duration),
}


def time_spent(source: Source, styles: LabelStyles) -> Section | None:
    """Computing time per method: means over cells, and the sum of all; None if no compressed network is finished."""
    cells = compressed(source.results)
    if cells.empty or cells["seconds"].isna().all():
        return None
    stages = [c for c in SECONDS if c in cells and cells[c].fillna(0).gt(0).any()]
    rows = []
    for (_, _, _, variant, _, label), own in cells.groupby(GROUP, sort=False):
        times = [numbers.duration(float(own[c].mean())) for c in stages]
        name = joined(styles.plain(str(label)), str(variant))
        rows.append([name, *times, numbers.duration(float(own["seconds"].sum())), str(len(own))])
    header = ["Method", *(STAGES[c] for c in stages), "All cells", "cells"]
    text = "Computing time of a cell, mean over cells, and that of all cells. The analysis of a chain counts once."
    return Section("Computing time", [Text(text), Table(header, rows)])


def pareto_fronts(source: Source, styles: LabelStyles) -> Section | None:
    """The networks that are on a Pareto front, by falling size; None in results of earlier versions."""
    frame = tidy(source.results)
    points = frame[(frame["status"] == "done") & (frame["pareto"] != "")]
    if points.empty:
        return None
    latencies = latency_columns(points)
    costs = COSTS | {c: (f"Latency b{c.rpartition('_b')[2]} (ms)", lambda ms: f"{ms:.3g}") for c in latencies}
    tables = []
    for metric, rows in by_metric(points):
        header = ["Method", "Keep ratio", column_title(metric), *(title for title, _ in costs.values())]
        tables.append(Table(header, [_point(own, metric.name, costs, styles) for own in _points(rows)]))
    text = (
        "* marks the costs by which a network is on the Pareto front: no other one is at least as good for less, or "
        "better for the same. Means over networks and repetitions; column pareto of results.csv has the same."
    )
    return Section("Pareto front", [Text(text), *tables])


def _points(rows: DataFrame) -> list[DataFrame]:
    """The rows of every variant, label and keep ratio, by falling size."""
    grouped = [own for _, own in rows.groupby([*GROUP, "keep_target"], sort=False, dropna=False)]
    return sorted(grouped, key=lambda own: (str(own["variant"].iloc[0]), -float(own["parameters"].mean())))


def _point(
    own: DataFrame, metric: str, costs: dict[str, tuple[str, Callable[[float], str]]], styles: LabelStyles
) -> list[str]:
    first, fronts = own.iloc[0], str(own["pareto"].iloc[0]).split()
    fraction = first["unit"] == "fraction"
    cells = [
        joined(styles.plain(str(first["label"])), str(first["variant"])),
        numbers.keep(float(first["keep_target"])),
        numbers.spread(float(own[metric].mean()), float(own[metric].std()), fraction),
    ]
    for cost, (_, write) in costs.items():
        value = float(own[cost].mean())
        text = numbers.MISSING if value != value else write(value)
        cells.append(f"{text} *" if cost in fronts else text)
    return cells
