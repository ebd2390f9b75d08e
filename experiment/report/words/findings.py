"""The parts of a report in numbers: reference networks, prune potential, every keep ratio, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiment.report.document import Block, Section, Table, Text
from experiment.report.mean_and_spread import GROUP, compressed, prune_only, quantized, references, summarize
from experiment.report.plots.label_styles import Naming
from experiment.report.prune_potential import potential_rows
from experiment.report.results_folder import REFERENCE, Source
from experiment.report.words import numbers

if TYPE_CHECKING:
    from pandas import DataFrame, Series

BYTES = ("bytes_dense", "bytes_values", "bytes_sparse", "bytes_file")
REMOVED = {"parameters": "Parameters", "flops": "FLOPs", "bytes": "Bytes of values"}


def reference_networks(source: Source) -> Section:
    """Accuracy and size of every uncompressed network."""
    found = references(source.results)
    found = found.drop_duplicates([c for c in found.columns if c != "variant"])
    if found.empty:
        return Section("Reference networks", [Text("No reference network is finished yet.")])
    several = found["variant"].nunique() > 1
    sizes = ["Parameters", "FLOPs", "File (kB)"]
    accuracies = ["Top-1 (%)", *(["Top-5 (%)"] if source.has_top5 else []), "Loss"]
    header = ["Network", *(["Variant"] if several else []), *accuracies, *sizes]
    rows = [_reference_row(row, several, source.has_top5) for _, row in found.iterrows()]
    if len(found) > 1 and not several:
        mean, std = found.mean(numeric_only=True), found.std(numeric_only=True)
        rows.append(["mean ± std", *_accuracies(mean, std, source.has_top5), "", "", ""])
    return Section("Reference networks", [Table(header, rows)])


def _reference_row(row: Series, several: bool, has_top5: bool) -> list[str]:
    return [
        f"{row['network']} n{row['net']:g}",
        *([str(row["variant"]) or "unchanged"] if several else []),
        *_accuracies(row, None, has_top5),
        numbers.whole(row["parameters"]),
        numbers.megas(row["flops"]),
        numbers.kilobytes(row["bytes_file"]),
    ]


def _accuracies(mean: Series, std: Series | None, has_top5: bool) -> list[str]:
    spread = {name: math.nan if std is None else float(std[name]) for name in ("top1", "top5", "loss")}
    return [
        numbers.percent_spread(mean["top1"], spread["top1"]),
        *([numbers.percent_spread(mean["top5"], spread["top5"])] if has_top5 else []),
        numbers.number_spread(mean["loss"], spread["loss"]),
    ]


def potential(source: Source, naming: Naming) -> Section:
    """The prune-potential tables of all quantities and both definitions."""
    frame = source.results
    if compressed(frame).empty:
        return Section("Prune potential", [Text("No compressed network is finished yet.")])
    several = len(compressed(frame)[["net", "repetition"]].drop_duplicates()) > 1
    what = (
        "Share removed in percent (and how many times smaller) at the largest reduction whose loss of top-1 accuracy "
        "is at most that of the column."
    )
    first = " Accuracy and size are averaged over networks and repetitions first." if several else ""
    quantities = [quantity for quantity in REMOVED if quantity != "bytes" or quantized(frame)]
    tables = [_potential_table(frame, quantity, "mean", naming) for quantity in quantities]
    blocks: list[Block] = [Text(what + first), *tables]
    if several:
        tables += [_potential_table(frame, quantity, "net", naming) for quantity in quantities]
        each = "The same, searched on the curve of every network and repetition by itself, then averaged (mean ± std):"
        blocks += [Text(each), *tables[len(quantities) :]]
    if any("†" in cell for table in tables for row in table.rows for cell in row):
        blocks.append(Text("† averages fewer networks than others: some cells are unfinished, failed or infeasible."))
    return Section("Prune potential", blocks)


def _potential_table(frame: DataFrame, quantity: str, per: str, naming: Naming) -> Table:
    header, rows = potential_rows(frame, quantity, None, "mean" if per == "mean" else "net", naming)
    return Table([f"{REMOVED[quantity]} removed (%)" if h == "Method" else h for h in header], rows)


def every_keep_ratio(source: Source, naming: Naming) -> Iterator[Section]:
    """A table a variant and label: what was achieved at every keep ratio."""
    summary = summarize(source.results)
    retrained, has_top5 = not prune_only(source.results), source.has_top5
    header = ["Keep ratio", "Parameters kept (%)", "smaller", "FLOPs kept (%)", "fewer", "Top-1 (%)", "change (points)"]
    header += ["Top-1 before retraining (%)"] if retrained else []
    header += ["Top-5 (%)"] if has_top5 else []
    header += ["Loss", "cells"]
    for _, rows in summary.groupby(GROUP, sort=False):
        first = rows.iloc[0]
        title = ", ".join(part for part in (naming.plain(str(first["label"])), str(first["variant"])) if part)
        falling = rows.sort_values("keep_target", ascending=False, kind="stable", na_position="first")
        body = [_keep_row(row, retrained, has_top5) for _, row in falling.iterrows()]
        yield Section(title, [Table(header, body)], folded=True)


def _keep_row(row: Series, retrained: bool, has_top5: bool) -> list[str]:
    target = float(row["keep_target"])
    cells = [
        "its own" if math.isnan(target) else numbers.keep(target),
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


def bytes_of_smallest(source: Source, naming: Naming) -> Section | None:
    """Bytes of the smallest network of every label, beside the reference's."""
    summary = summarize(source.results)
    summary = summary[summary["keep_parameters"].notna() & summary[list(BYTES)].notna().any(axis=1)]
    if summary.empty:
        return None
    smallest = summary.sort_values("keep_parameters", kind="stable").drop_duplicates(GROUP).sort_index()
    reference = references(source.results).mean(numeric_only=True)
    dense, file = numbers.kilobytes(reference["bytes_dense"]), numbers.kilobytes(reference["bytes_file"])
    rows = [[REFERENCE, numbers.percent(1.0, 2), dense, dense, dense, file]]
    for _, row in smallest.iterrows():
        name = ", ".join(part for part in (naming.plain(str(row["label"])), str(row["variant"])) if part)
        sizes = [numbers.kilobytes(row[column]) for column in BYTES]
        rows.append([name, numbers.percent(row["keep_parameters"], 2), *sizes])
    header = ["Method", "Parameters kept (%)", "Dense (kB)", "Values (kB)", "Sparse (kB)", "File (kB)"]
    return Section("Bytes of the smallest networks", [Table(header, rows)])
