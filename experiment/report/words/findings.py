"""The parts of a report in numbers: reference networks, prune potential, all keep ratios, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiment.report.document import Block, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.mean_and_spread import summarize
from experiment.report.primary_metric import AGREEMENT, ReportedMetric, by_metric, metric_named
from experiment.report.prune_potential import Per
from experiment.report.results_folder import Source
from experiment.report.results_table import GROUP, REFERENCE, compressed, counts_bytes, prune_only, references
from experiment.report.words import numbers
from experiment.report.words.potential_tables import potential_rows
from experiment.report.words.titles import QUANTITIES, capitalized, column_title, joined

if TYPE_CHECKING:
    from pandas import DataFrame, Series

BYTES = ("bytes_dense", "bytes_values", "bytes_sparse", "bytes_file")


def reference_networks(source: Source) -> Section:
    """Metrics and size of every uncompressed network; one table per primary metric."""
    found = references(source.results)
    found = found.drop_duplicates([c for c in found.columns if c != "variant"])
    if found.empty:
        return Section("Reference networks", [Text("No reference network is finished.")])
    several = found["variant"].nunique() > 1
    tables = [
        _references_table(found[found["primary"] == metric.name], _metrics(source, rows, metric), several)
        for metric, rows in by_metric(source.results)
    ]
    return Section("Reference networks", [table for table in tables if table.rows])


def _references_table(found: DataFrame, metrics: list[ReportedMetric], several: bool) -> Table:
    figures = [*map(column_title, metrics), "Loss"]
    header = ["Network", *(["Variant"] if several else []), *figures, "Parameters", "FLOPs", "File (kB)"]
    rows = [
        [
            f"{row['network']} n{row['net']:g}",
            *([str(row["variant"]) or "unchanged"] if several else []),
            *_figures(row, None, metrics),
            numbers.whole(row["parameters"]),
            numbers.megas(row["flops"]),
            numbers.kilobytes(row["bytes_file"]),
        ]
        for _, row in found.iterrows()
    ]
    averaged = len(found) > 1 and not several
    if averaged:
        mean, std = found.mean(numeric_only=True), found.std(numeric_only=True)
        rows.append(["mean ± std", *_figures(mean, std, metrics), "", "", ""])
    return Table(header, rows, footer=int(averaged))


def _metrics(source: Source, rows: DataFrame, primary: ReportedMetric) -> list[ReportedMetric]:
    return [primary, *(metric_named(name, primary) for name in source.other_metrics(rows))]


def _figures(mean: Series, std: Series | None, metrics: list[ReportedMetric]) -> list[str]:
    spread = {name: math.nan if std is None else float(std[name]) for name in (*(m.name for m in metrics), "loss")}
    figures = [numbers.spread(mean[m.name], spread[m.name], m.unit == "fraction") for m in metrics]
    return [*figures, numbers.number_spread(mean["loss"], spread["loss"])]


def potential(source: Source, styles: LabelStyles) -> Section:
    """The prune-potential tables of all quantities, in both definitions."""
    frame = source.results
    if compressed(frame).empty:
        return Section("Prune potential", [Text("No compressed network is finished.")])
    several = len(compressed(frame)[["net", "repetition"]].drop_duplicates()) > 1
    losses = " or ".join(metric.loss_title for metric, _ in by_metric(frame))
    text = (
        f"Share removed in percent (and how many times smaller) at the largest reduction whose {losses} "
        "is at most that of the column."
    )
    figure = "Accuracy" if losses == "loss of top-1 accuracy" else "The metric"
    first = f" {figure} and size are averaged over networks and repetitions first." if several else ""
    quantities = ["parameters", "flops", *(["bytes"] if counts_bytes(frame) else [])]
    tables = list(_potential_tables(frame, quantities, "mean", styles))
    blocks: list[Block] = [Text(text + first), *tables]
    if several:
        averaged = list(_potential_tables(frame, quantities, "net", styles))
        tables += averaged
        each = "The same, computed on the curve of every network and repetition and then averaged (mean ± std):"
        blocks += [Text(each), *averaged]
    if any("†" in cell for table in tables for row in table.rows for cell in row):
        blocks.append(Text("† averages fewer networks than others: some cells are unfinished, failed or infeasible."))
    return Section("Prune potential", blocks)


def _potential_tables(frame: DataFrame, quantities: list[str], per: Per, styles: LabelStyles) -> Iterator[Table]:
    """One table per primary metric and quantity."""
    for _, own in by_metric(frame):
        for quantity in quantities:
            header, rows = potential_rows(own, quantity, None, per, styles)
            first = f"{capitalized(QUANTITIES[quantity])} removed (%)"
            yield Table([first if h == "Method" else h for h in header], rows)


def every_keep_ratio(source: Source, styles: LabelStyles) -> Iterator[Section]:
    """One table per variant and label: what was achieved at every keep ratio."""
    retrained = not prune_only(source.results)
    for metric, own in by_metric(source.results):
        agreement = [metric_named(name, metric) for name in AGREEMENT if own[name].notna().any()]
        others = [*_metrics(source, own, metric)[1:], *agreement]
        before = [metric_named(metric.before, metric)] if retrained else []
        header = ["Keep ratio", "Parameters kept (%)", "smaller", "FLOPs kept (%)", "fewer"]
        header += [column_title(metric), f"change ({metric.step})", *map(column_title, [*before, *others])]
        for _, rows in summarize(own).groupby(GROUP, sort=False):
            first = rows.iloc[0]
            title = joined(styles.plain(str(first["label"])), str(first["variant"]))
            falling = rows.sort_values("keep_target", ascending=False, kind="stable", na_position="first")
            body = [_keep_row(row, metric, [*before, *others]) for _, row in falling.iterrows()]
            yield Section(title, [Table([*header, "Loss", "cells"], body)], folded=True)


def _keep_row(row: Series, metric: ReportedMetric, others: list[ReportedMetric]) -> list[str]:
    target = float(row["keep_target"])
    cells = [
        "set by the method" if math.isnan(target) else numbers.keep(target),
        numbers.percent(row["keep_parameters"], 2),
        numbers.factor(row["keep_parameters"]),
        numbers.percent(row["keep_flops"], 2),
        numbers.factor(row["keep_flops"]),
        numbers.spread(row[metric.name], row[f"{metric.name}_std"], metric.unit == "fraction"),
        numbers.change(metric.difference(row[metric.reference], row[metric.name])),
    ]
    cells += [numbers.spread(row[m.name], row[f"{m.name}_std"], m.unit == "fraction") for m in others]
    return [*cells, numbers.number_spread(row["loss"], row["loss_std"]), str(row["cells"])]


def bytes_of_smallest(source: Source, styles: LabelStyles) -> Section | None:
    """Bytes of the smallest network of every label, compared with the reference network."""
    summary = summarize(source.results)
    summary = summary[summary["keep_parameters"].notna() & summary[list(BYTES)].notna().any(axis=1)]
    if summary.empty:
        return None
    smallest = summary.sort_values("keep_parameters", kind="stable").drop_duplicates(GROUP).sort_index()
    reference = references(source.results).mean(numeric_only=True)
    dense, file = numbers.kilobytes(reference["bytes_dense"]), numbers.kilobytes(reference["bytes_file"])
    rows = [[REFERENCE, numbers.percent(1.0, 2), dense, dense, dense, file]]
    for _, row in smallest.iterrows():
        name = joined(styles.plain(str(row["label"])), str(row["variant"]))
        sizes = [numbers.kilobytes(row[column]) for column in BYTES]
        rows.append([name, numbers.percent(row["keep_parameters"], 2), *sizes])
    header = ["Method", "Parameters kept (%)", "Dense (kB)", "Values (kB)", "Sparse (kB)", "File (kB)"]
    return Section("Bytes of the smallest networks", [Table(header, rows)])
