"""The primary metric against a cost: latency in milliseconds, size in bytes, or the time that compression takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiment.errors import ConfigError
from experiment.report.label_styles import REFERENCE_COLOR, LabelStyles, Look
from experiment.report.mean_and_spread import summarize
from experiment.report.plots.curves import REFERENCE_NAME, draw_curve, draw_reference, log_ticks, plain_ticks
from experiment.report.plots.figure import new_figure, place_legend, set_title
from experiment.report.plots.marks import mark
from experiment.report.primary_metric import ReportedMetric, primary_metric
from experiment.report.results_table import (
    LATENCY,
    REFERENCE,
    compressed,
    labels_of,
    reference_rows,
    select_variant,
    tidy,
)
from experiment.report.words.points import cells_in_words
from experiment.report.words.titles import axis_title, joined, metric_title, network_on_dataset, retraining_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

BYTES = {
    "bytes_dense": "Dense size (kB)",
    "bytes_values": "Values (kB)",
    "bytes_sparse": "Sparse size (kB)",
    "bytes_file": "network.pt on disk (kB)",
    "bytes_bitmask": "Bitmask format (kB)",
    "bytes_csr": "CSR format (kB)",
}
OTHERS = BYTES | {"seconds": "Computing time of compression, tuning and retraining (s)"}
WIDE = 5  # ratio of largest to smallest value from which the axis is logarithmic


def plot_cost(
    results: DataFrame, column: str, *, variant: str | None = None, styles: LabelStyles | None = None, note: str = ""
) -> Figure:
    """Draw one curve per label: mean of the primary metric against the mean of a column, over all keep ratios.

    Horizontal bars show the mean interquartile range of latencies. A star marks the reference network.

    Args:
        results: rows of results.csv, of one network and dataset.
        column: `latency_ms_b<batch>`, one of the `bytes_` columns, or `seconds`.
        variant, styles, note: as in `plot_tradeoff`.

    Raises: ConfigError: unknown or missing column, or unknown variant.
    """
    if column not in OTHERS and not LATENCY.fullmatch(column):
        raise ConfigError(f"column: must be latency_ms_b<batch> or one of {', '.join(OTHERS)}. Got {column!r}.")
    results = tidy(results)
    if column not in results:
        raise ConfigError(f"results: no column {column}. Request it with experiments.measure in the parameter file.")
    styles, chosen = styles or LabelStyles(), select_variant(results, variant)
    is_latency = column not in OTHERS
    unit = 1e-3 if column in BYTES else 1.0
    cells, own = (rows[rows[column].notna()] for rows in (compressed(chosen), reference_rows(chosen)))
    figure, (axes,) = new_figure(1)
    metric = primary_metric(chosen)
    entries = _draw_curves(axes, cells, (column, unit), metric, styles.looks(labels_of(results)), styles)
    if len(own):
        x, y = unit * float(own[column].mean()), metric.scale * float(own[metric.name].mean())
        draw_reference(axes, y)
        (star,) = axes.plot([x], [y], "*", color=REFERENCE_COLOR, markersize=11, zorder=4)
        entries.append((mark(star, REFERENCE, [REFERENCE_NAME]), REFERENCE_NAME))
    axes.set_ylabel(axis_title(metric_title(metric.name), metric))
    _label_axis(axes, column, unit * cells[column])
    first = chosen.iloc[0]
    device = str(first.get("latency_device", "")) if is_latency else ""
    set_title(
        figure, network_on_dataset(chosen), joined(note, retraining_in_words(chosen), str(first["variant"]), device)
    )
    place_legend(figure, entries)
    return figure


def _draw_curves(
    axes: Axes, cells: DataFrame, cost: tuple[str, float], metric: ReportedMetric, looks: Mapping[str, Look],
    styles: LabelStyles,
) -> list[tuple[Any, str]]:  # fmt: skip
    """`cost` is the column and its unit."""
    (column, unit), entries = cost, []
    spread, summary = column.replace("_ms_", "_iqr_ms_"), summarize(cells)
    for label, rows in cells.groupby("label", sort=False):
        points, look = rows.groupby("keep_target", sort=False, dropna=False), looks[str(label)]
        x, y = unit * points[column].mean(), metric.scale * points[metric.name].mean()
        words = cells_in_words(summary[summary["label"] == label], styles, metric)
        entries.append((mark(draw_curve(axes, x, y, look), str(label), words), styles.name(str(label))))
        if spread != column and spread in rows:
            half = points[spread].mean() / 2
            low, high = x - half, x + half
            mark(axes.hlines(y, low, high, color=look.color, linewidth=0.8, alpha=0.5, zorder=2), str(label))
    return entries


def _label_axis(axes: Axes, column: str, values: Any) -> None:
    batch = LATENCY.fullmatch(column)
    axes.set_xlabel(f"Latency at batch size {batch[1]} (ms)" if batch else OTHERS[column])
    if len(values) and values.min() > 0 and values.max() > WIDE * values.min():
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        plain_ticks(axes)
