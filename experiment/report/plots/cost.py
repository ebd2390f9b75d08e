"""Accuracy against what a network costs where it runs: milliseconds, bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.errors import ConfigError
from experiment.report.mean_and_spread import compressed, labels_of, select_variant
from experiment.report.plots.figure import new_figure, place_legend, plain_ticks, set_title
from experiment.report.plots.label_styles import REFERENCE_COLOR, Naming, line_of
from experiment.report.results_folder import REFERENCE, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

LATENCY = re.compile(r"latency_ms_b(\d+)")
BYTES = ("bytes_dense", "bytes_values", "bytes_sparse", "bytes_file", "bytes_bitmask", "bytes_csr")
WIDE = 5  # from this ratio of largest to smallest on, the axis is logarithmic


def latency_columns(results: DataFrame) -> list[str]:
    """The columns of measured latencies that hold any, by rising batch."""
    found = [str(c) for c in results.columns if LATENCY.fullmatch(str(c)) and results[c].notna().any()]
    return sorted(found, key=lambda column: int(column.rpartition("_b")[2]))


def plot_cost(
    results: DataFrame,
    column: str,
    *,
    variant: str | None = None,
    naming: Naming | None = None,
    note: str = "",
) -> Figure:
    """Draw one curve a label: mean top-1 accuracy against the mean of a column, for every keep ratio.

    Latencies carry their mean interquartile range as horizontal bars. A star is the reference network.

    Args:
        results: rows of results.csv, of one network and dataset.
        column: latency_ms_b1 and the like, or one of the bytes_ columns.
    Raises: ConfigError: another column, one that results do not have, or an unknown variant.
    """
    if column not in BYTES and not LATENCY.fullmatch(column):
        raise ConfigError(f"column: must be a latency_ms_b<batch> or one of {', '.join(BYTES)}. Got {column!r}.")
    if column not in results:
        raise ConfigError(f"results: no column {column}. Ask for it in the parameter file: experiments.measure.")
    naming = naming or Naming()
    chosen = select_variant(results, variant)
    unit = 1.0 if column.startswith("latency") else 1e-3
    cells = compressed(chosen)
    cells = cells[cells[column].notna()]
    figure, (axes,) = new_figure(1)
    handles = _draw_curves(axes, cells, column, unit, naming, labels_of(results))
    own = tidy(chosen)
    own = own[(own["method"] == REFERENCE) & own[column].notna()]
    if len(own):
        x, y = unit * float(own[column].mean()), 100 * float(own["top1"].mean())
        axes.axhline(y, color=REFERENCE_COLOR, linestyle=(0, (6, 3)), linewidth=1, zorder=1)
        (handles[REFERENCE],) = axes.plot([x], [y], "*", color=REFERENCE_COLOR, markersize=11, zorder=4)
    _label_axes(axes, column, unit * cells[column])
    first = chosen.iloc[0]
    device = str(first.get("latency_device", "")) if unit == 1.0 else ""
    where = ", ".join(part for part in (note, str(first["variant"]), device) if part)
    set_title(figure, f"{first['network']} on {first['dataset']}", where)
    place_legend(figure, [(handle, _name(label, naming)) for label, handle in handles.items()])
    return figure


def _draw_curves(
    axes: Axes, cells: DataFrame, column: str, unit: float, naming: Naming, labels: list[str]
) -> dict[str, Any]:
    looks, handles = naming.looks(labels), {}
    spread = column.replace("_ms_", "_iqr_ms_")
    for label, rows in cells.groupby("label", sort=False):
        points = rows.groupby("keep_target", sort=False, dropna=False)
        x, y = unit * points[column].mean(), 100 * points["top1"].mean()
        look = looks[str(label)]
        (handles[str(label)],) = axes.plot(
            x, y, color=look.color, marker=look.marker, linestyle=line_of(look, len(points)),
            linewidth=1.5, markersize=4.5, markerfacecolor=look.color if look.filled else "white",
            markeredgecolor=look.color, zorder=3,
        )  # fmt: skip
        if spread != column and spread in rows:
            half = points[spread].mean() / 2
            axes.errorbar(x, y, xerr=half, fmt="none", ecolor=look.color, elinewidth=0.8, alpha=0.5, zorder=2)
    return handles


def _label_axes(axes: Axes, column: str, values: Any) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_ylabel("Top-1 test accuracy (%)")
    batch = LATENCY.fullmatch(column)
    if batch:
        axes.set_xlabel(f"Latency of a batch of {batch[1]} (ms)")
    else:
        axes.set_xlabel(
            "network.pt on disk (kB)" if column == "bytes_file" else f"{column.removeprefix('bytes_')} (kB)"
        )
    if len(values) and values.min() > 0 and values.max() > WIDE * values.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plain_ticks(axes)


def _name(label: str, naming: Naming) -> str:
    return "Reference (uncompressed)" if label == REFERENCE else escaping.plot(naming.name(label))
