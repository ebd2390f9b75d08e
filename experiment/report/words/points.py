"""The cells behind the points of a plot, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import BEFORE, ReportedMetric
from experiment.report.words import numbers

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def cell_name(name: str, keep: float) -> str:
    """`ALDS, keep ratio 0.2`."""
    return f"{name}, {'size set by the method' if math.isnan(keep) else f'keep ratio {numbers.keep(keep)}'}"


def cells_in_words(
    summary: DataFrame, styles: LabelStyles, metric: ReportedMetric, reference: float = math.nan
) -> list[str]:
    """What every point averages, one fact a line: label and keep ratio, size, spread, difference, networks.

    Args:
        summary: rows of `summarize`, one per point.
        reference: the figure of the reference networks, for metrics without a column of it.
    """
    rows = (row for _, row in summary.iterrows())
    return ["\n".join([cell_name(styles.plain(row["label"]), row["keep_target"]), *_facts(row, metric, reference)])
            for row in rows]  # fmt: skip


def _facts(row: Series, metric: ReportedMetric, reference: float) -> list[str]:
    own = float(row.get(f"{metric.name.removesuffix(BEFORE)}_reference", reference)) or math.nan
    std, change = (
        float(row[f"{metric.name}_std"]),
        numbers.change(float(metric.difference(own, float(row[metric.name])))),
    )
    cells = f" ({row['cells']} cells)" if row["cells"] != row["nets"] else ""
    return [
        *([] if math.isnan(std) else [f"Standard deviation: {metric.scale * std:.2g}"]),
        *([] if change == numbers.MISSING else [f"Difference from the reference: {change} {metric.step}"]),
        f"Parameters kept: {numbers.percent(row['keep_parameters'], 2)} %",
        f"Networks: {row['networks']}{cells}",
    ]
