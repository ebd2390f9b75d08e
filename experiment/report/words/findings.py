"""The parts of a report in numbers: reference networks, prune potential, all keep ratios, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiment.report.document import Block, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.mean_and_spread import summarize
from experiment.report.prune_potential import Per
from experiment.report.results_folder import Source
from experiment.report.results_table import GROUP, REFERENCE, compressed, prune_only, quantized, references
from experiment.report.words import numbers
from experiment.report.words.potential_tables import potential_rows
from experiment.report.words.titles import QUANTITIES, capitalized, joined

if TYPE_CHECKING:
    from pandas import Series

BYTES = ("bytes_dense", "bytes_values", "bytes_sparse", "bytes_file")


def reference_networks(source: Source) -> Section:
    """Accuracy and size of every uncompressed network."""
    found = references(source.results)
    found = found.drop_duplicates([c for c in found.columns if c != "variant"])
    if found.empty:
        return Section("Reference networks", [Text("No reference network is finished yet.")])
    several = found["variant"].nunique() > 1
    accuracies = ["Top-1 (%)", *(["Top-5 (%)"] if source.has_top5 else []), "Loss"]
    header = ["Network", *(["Variant"] if several else []), *accuracies, "Parameters", "FLOPs", "File (kB)"]
    rows = [
        [
            f"{row['network']} n{row['net']:g}",
            *([str(row["variant"]) or "unchanged"] if several else []),
            *_accuracies(row, None, source.has_top5),
            numbers.whole(row["parameters"]),
            numbers.megas(row["flops"]),
            numbers.kilobytes(row["bytes_file"]),
        ]
        for _, row in found.iterrows()
    ]
    if len(found) > 1 and not several:
        mean, std = found.mean(numeric_only=True), found.std(numeric_only=True)
        rows.append(["mean ± std", *_accuracies(mean, std, source.has_top5), "", "", ""])
    return Section("Reference networks", [Table(header, rows)])


def _accuracies(mean: Series, std: Series | None, has_top5: bool) -> list[str]:
    spread = {name: math.nan if std is None else float(std[name]) for name in ("top1", "top5", "loss")}
    return [
        numbers.percent_spread(mean["top1"], spread["top1"]),
        *([numbers.percent_spread(mean["top5"], spread["top5"])] if has_top5 else []),
        numbers.number_spread(mean["loss"], spread["loss"]),
    ]


def potential(source: Source, styles: LabelStyles) -> Section:
    """The prune-potential tables of all quantities, in both definitions."""
    frame = source.results
    if compressed(frame).empty:
        return Section("Prune potential", [Text("No compressed network is finished yet.")])
    several = len(compressed(frame)[["net", "repetition"]].drop_duplicates()) > 1
    text = (
        "Share removed in percent (and how many times smaller) at the largest reduction whose loss of top-1 accuracy "
        "is at most that of the column."
    )
    first = " Accuracy and size are averaged over networks and repetitions first." if several else ""
    quantities = ["parameters", "flops", *(["bytes"] if quantized(frame) else [])]
    tables = [_potential_table(source, quantity, "mean", styles) for quantity in quantities]
    blocks: list[Block] = [Text(text + first), *tables]
    if several:
        tables = [*tables, *(_potential_table(source, quantity, "net", styles) for quantity in quantities)]
        each = "The same, computed on the curve of every network and repetition and then averaged (mean ± std):"
        blocks += [Text(each), *tables[len(quantities) :]]
    if any("†" in cell for table in tables for row in table.rows for cell in row):
        blocks.append(Text("† averages fewer networks than others: some cells are unfinished, failed or infeasible."))
    return Section("Prune potential", blocks)


def _potential_table(source: Source, quantity: str, per: Per, styles: LabelStyles) -> Table:
    header, rows = potential_rows(source.results, quantity, None, per, styles)
    return Table([f"{capitalized(QUANTITIES[quantity])} removed (%)" if h == "Method" else h for h in header], rows)


def every_keep_ratio(source: Source, styles: LabelStyles) -> Iterator[Section]:
    """One table per variant and label: what was achieved at every keep ratio."""
    summary = summarize(source.results)
    retrained, has_top5 = not prune_only(source.results), source.has_top5
    header = ["Keep ratio", "Parameters kept (%)", "smaller", "FLOPs kept (%)", "fewer", "Top-1 (%)", "change (points)"]
    header += ["Top-1 before retraining (%)"] if retrained else []
    header += ["Top-5 (%)"] if has_top5 else []
    header += ["Loss", "cells"]
    for _, rows in summary.groupby(GROUP, sort=False):
        first = rows.iloc[0]
        title = joined(styles.plain(str(first["label"])), str(first["variant"]))
        falling = rows.sort_values("keep_target", ascending=False, kind="stable", na_position="first")
        body = [_keep_row(row, retrained, has_top5) for _, row in falling.iterrows()]
        yield Section(title, [Table(header, body)], folded=True)


def _keep_row(row: Series, retrained: bool, has_top5: bool) -> list[str]:
    target = float(row["keep_target"])
    cells = [
        "set by the method" if math.isnan(target) else numbers.keep(target),
        numbers.percent(row["keep_parameters"], 2),
        numbers.factor(row["keep_parameters"]),
        numbers.percent(row["keep_flops"], 2),
        numbers.factor(row["keep_flops"]),
        numbers.percent_spread(row["top1"], row["top1_std"]),
        numbers.change(row["top1"] - row["top1_reference"]),
    ]
    if retrained:
        cells.append(numbers.percent_spread(row["top1_before_retraining"], row["top1_before_retraining_std"]))
    if has_top5:
        cells.append(numbers.percent_spread(row["top5"], row["top5_std"]))
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
