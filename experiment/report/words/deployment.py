"""What one would deploy: the best network within a few sizes and latencies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiment.report.deployments import BYTES, FIGURE, TORCH, cost_in_words, costs_of, deployments, runtimes_of
from experiment.report.document import Block, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import ReportedMetric, primary_metric
from experiment.report.results_folder import Source
from experiment.report.results_table import REFERENCE, compressed, variants_of
from experiment.report.words import numbers
from experiment.report.words.titles import capitalized, column_title, variant_in_words

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the reference network


def what_to_deploy(source: Source, styles: LabelStyles) -> Section | None:
    """The best network, in any runtime, within shares of the size and of the latency of the reference network."""
    frame, blocks = source.results, list[Block]()
    for variant in variants_of(frame):
        rows = frame[frame["variant"] == variant]
        if compressed(rows).empty or not runtimes_of(rows):
            continue
        if len(variants_of(frame)) > 1:
            blocks.append(Text(f"Variant {variant_in_words(variant)}:"))
        table, metric = deployments(rows), primary_metric(rows)
        costs = costs_of(table)
        latencies = [cost for cost in costs if cost.startswith("latency")]
        for cost in (BYTES, *latencies):
            shown = cost if cost in latencies else next(iter(latencies), None)
            blocks.append(_best_within(table, cost, shown, metric, styles))
    text = (
        "The best network, in any runtime, within a limit: its metric was measured in that runtime on the test set. "
        "Limits are shares of what the reference network takes in the runtime that is best for it. "
        f"{TORCH} means network.pt."
    )
    return Section("What you would deploy", [Text(text), *blocks]) if blocks else None


def _best_within(
    table: DataFrame, cost: str, latency: str | None, metric: ReportedMetric, styles: LabelStyles
) -> Table:
    whole = float(table.loc[table["method"] == REFERENCE, cost].min())
    limit = f"Limit of {cost_in_words(cost)} ({'kB' if cost == BYTES else 'ms'})"
    header = [limit, "Method", "Parameters kept (%)", "Runtime", column_title(metric), "File (kB)"]
    header += [f"{capitalized(cost_in_words(latency))} (ms)"] if latency else []
    rows = []
    for most in (whole * share for share in SHARES):
        found = table[table[cost] <= most]
        if len(found):
            by = found.sort_values([FIGURE, cost], ascending=[metric.better != "higher", True], kind="stable")
            rows.append([f"≤ {_cost(most, cost)}", *_row(by.iloc[0], latency, metric, styles)])
    return Table(header, rows)


def _row(best: Series, latency: str | None, metric: ReportedMetric, styles: LabelStyles) -> Iterator[str]:
    yield styles.plain(str(best["label"]))
    yield numbers.percent(float(best["keep_parameters"]), 2)
    yield str(best["runtime"])
    yield numbers.spread(float(best[FIGURE]), math.nan, metric.unit == "fraction")
    yield numbers.kilobytes(float(best[BYTES]))
    if latency is not None:
        yield _cost(float(best[latency]), latency)


def _cost(value: float, cost: str) -> str:
    if math.isnan(value):
        return numbers.MISSING
    return numbers.kilobytes(value) if cost == BYTES else f"{value:.3g}"
