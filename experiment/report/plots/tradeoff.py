"""The prune-accuracy trade-off as a picture: accuracy against the share of parameters or FLOPs removed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from experiment import escaping
from experiment.errors import ConfigError
from experiment.report.mean_and_spread import (
    Band,
    Quantity,
    compressed,
    keep_column,
    labels_of,
    references,
    select_variant,
    summarize,
)
from experiment.report.plots.figure import new_figure, place_legend, plain_ticks, set_title
from experiment.report.plots.label_styles import REFERENCE_COLOR, Look, Naming, line_of
from experiment.report.results_folder import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

Scale = Literal["linear", "log"]
Metric = Literal["top1", "top5", "loss", "top1_before_retraining"]
METRIC_LABELS = {
    "top1": "Top-1 test accuracy (%)",
    "top5": "Top-5 test accuracy (%)",
    "loss": "Test loss",
    "top1_before_retraining": "Top-1 test accuracy\nbefore retraining (%)",
}
QUANTITY_LABELS = {
    "parameters": "Parameters",
    "flops": "FLOPs",
    "flops_unmasked": "FLOPs of unmasked weights",
    "bytes": "Bytes of values",
}
CLOSE_UP_POINTS = 5.0  # percentage points below the reference that the close-up shows
LOG_TICKS = (100, 70, 50, 30, 20, 10, 7, 5, 3, 2, 1, 0.7, 0.5, 0.3, 0.2, 0.1)
FEWER_TICKS = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)  # over more than two decades, where those would meet
MOST_TICKS = 11


def plot_tradeoff(
    results: DataFrame,
    quantity: Quantity = "parameters",
    metric: Metric = "top1",
    *,
    variant: str | None = None,
    band: Band = "std",
    scale: Scale = "linear",
    keep_limits: tuple[float | None, float | None] = (None, None),
    close_up: bool | None = None,
    names: Mapping[str, str] | None = None,
    colors: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """Draw one curve a label: the mean over networks and repetitions at every keep ratio, with a band of its spread.

    Every point stands at the *achieved* size. The reference network is a dashed line with a band of its own.

    Args:
        results: rows of results.csv, of one network and dataset.
        variant: which variant of a sweep; need not be given where there is one.
        band: `std` (mean plus and minus one sample standard deviation) or `range` (smallest to largest).
        scale: `linear` draws the share removed; `log` the share kept on a logarithmic axis, for hard compression.
        keep_limits: smallest and largest keep ratio on the x axis (a parameter file's plotting.minVal and maxVal).
        close_up: a second panel of the first five points below the reference; by default where curves fall far below.
        names: label or torchprune class name -> name to show. colors: likewise, -> colour.
        note: appended to the second line of the title (such as the mode and the retraining budget).

    Returns: a figure of matplotlib without any global state: `figure.savefig("x.pdf")`, or shown as it is in
        a notebook.
    Raises: ConfigError: unknown quantity, metric or variant, or rows of several networks.
    """
    if metric not in METRIC_LABELS:
        raise ConfigError(f"metric: must be one of {', '.join(METRIC_LABELS)}. Got {metric!r}.")
    keep = keep_column(quantity)
    chosen = select_variant(results, variant)
    naming = Naming(names or {}, colors or {})
    points = _drawable(summarize(chosen), keep, metric)
    unit = 1.0 if metric == "loss" else 100.0
    reference = _reference(chosen, metric, band, unit)
    wide = _falls_far(points, metric, reference) if close_up is None else close_up and metric != "loss"
    figure, panels = new_figure(2 if wide else 1)
    looks = naming.looks(labels_of(results))
    handles = {}
    for axes in panels:
        handles = _draw_curves(axes, points, keep, metric, band, scale, unit, looks)
        _draw_reference(axes, reference, handles)
        _label_axes(axes, quantity, metric, scale, keep_limits, points[keep])
    if metric == "loss":
        _maybe_log_loss(panels[0], points)
    if wide:
        panels[0].set_title("whole range", fontsize=9)
        _zoom_in(panels[1], points[metric], reference)
    set_title(figure, *_title(chosen, note))
    place_legend(figure, [(handles[k], _legend_name(k, naming)) for k in handles], _legend_title(chosen, points, band))
    _explain(figure, panels[0], chosen, quantity, {label: naming.name(label) for label in labels_of(chosen)}, points)
    return figure


def _drawable(points: DataFrame, keep: str, metric: str) -> DataFrame:
    """Points with a size and a value; a label that removes nothing of this quantity anywhere has no curve."""
    points = points[points[keep].notna() & points[metric].notna()]
    if points.empty or keep == "keep_parameters":
        return points
    moves = points.groupby("label")[keep].transform("min") < 1 - 1e-12
    return points[moves | (points["method"] == "Fake")]


def _draw_curves(
    axes: Axes, points: DataFrame, keep: str, metric: str, band: Band, scale: str, unit: float, looks: dict[str, Look]
) -> dict[str, Any]:
    ends = ("_min", "_max")
    handles: dict[str, Any] = {}
    alpha = 0.18 if points["label"].nunique() <= 7 else 0.08
    for label, curve in points.groupby("label", sort=False):
        curve = curve.sort_values(keep, ascending=False)
        x = 100 * (1 - curve[keep] if scale == "linear" else curve[keep])
        y, std = unit * curve[metric], unit * curve[f"{metric}_std"].fillna(0)
        low, high = (y - std, y + std) if band == "std" else (unit * curve[f"{metric}{end}"] for end in ends)
        look = looks[str(label)]
        (handles[str(label)],) = axes.plot(
            x, y, color=look.color, marker=look.marker, linestyle=line_of(look, len(curve)),
            linewidth=1.5, markersize=4.5, markerfacecolor=look.color if look.filled else "white",
            markeredgecolor=look.color, zorder=3,
        )  # fmt: skip
        if bool((high > low).any()):
            floor = y.min() * 0.5 if metric == "loss" else 0
            axes.fill_between(x, low.clip(lower=floor), high, color=look.color, alpha=alpha, linewidth=0, zorder=2)
    return handles


def _reference(results: DataFrame, metric: str, band: Band, unit: float) -> tuple[float, float, float] | None:
    """The reference networks' mean and the edges of its band, in the unit of the axis."""
    values = references(results)["top1" if metric.startswith("top1") else metric].dropna() * unit
    if values.empty:
        return None
    mean, std = float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
    return (mean, mean - std, mean + std) if band == "std" else (mean, float(values.min()), float(values.max()))


def _draw_reference(axes: Axes, reference: tuple[float, float, float] | None, handles: dict[str, Any]) -> None:
    if reference is not None:
        mean, low, high = reference
        handles[REFERENCE] = axes.axhline(mean, color=REFERENCE_COLOR, linestyle=(0, (6, 3)), linewidth=1, zorder=1)
        axes.axhspan(low, high, color=REFERENCE_COLOR, alpha=0.15, linewidth=0, zorder=0)


def _label_axes(
    axes: Axes,
    quantity: str,
    metric: str,
    scale: str,
    limits: tuple[float | None, float | None],
    keeps: Any,
) -> None:
    from matplotlib.ticker import FixedLocator

    smallest, largest = limits if limits[0] != limits[1] else (None, None)
    axes.set_ylabel(METRIC_LABELS[metric])
    if scale == "linear":
        axes.set_xlabel(f"{QUANTITY_LABELS[quantity]} removed (%)")
        left = 0.0 if largest is None else 100 * (1 - largest)
        right = None if smallest is None else 100 * (1 - smallest)
        if right is None and len(keeps):
            most = 100 * (1 - float(keeps.min()))
            right = 100.0 if most > 85 else most + 2
        axes.set_xlim(left - 1 if right is None or right - left > 10 else left, right or 100.0)
        return
    axes.set_xscale("log")
    axes.set_xlabel(f"{QUANTITY_LABELS[quantity]} kept (%), logarithmic")
    low = 100 * (smallest if smallest else float(keeps.min()) * 0.9 if len(keeps) else 0.01)
    axes.set_xlim(100 * (largest if largest is not None else 1.0), low)
    ticks = [tick for tick in LOG_TICKS if low <= tick <= 100]
    if len(ticks) > MOST_TICKS:
        ticks = [tick for tick in FEWER_TICKS if tick >= low]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    plain_ticks(axes)


def _falls_far(points: DataFrame, metric: str, reference: tuple[float, float, float] | None) -> bool:
    if metric == "loss" or points.empty:
        return False
    top = reference[0] if reference else 100 * float(points[metric].max())
    return top - 100 * float(points[metric].min()) > 3 * CLOSE_UP_POINTS


def _zoom_in(axes: Axes, accuracy: Series, reference: tuple[float, float, float] | None) -> None:
    best = 100 * float(accuracy.max()) if len(accuracy) else math.nan
    top = max(value for value in (best, reference[2] if reference else math.nan) if not math.isnan(value))
    base = reference[0] if reference else top
    axes.set_ylim(base - CLOSE_UP_POINTS, min(100.5, top + 0.08 * CLOSE_UP_POINTS))
    axes.set_title(f"close-up: {CLOSE_UP_POINTS:g} points below the reference", fontsize=9)


def _maybe_log_loss(axes: Axes, points: DataFrame) -> None:
    losses = points["loss"]
    if len(losses) and losses.min() > 0 and losses.max() > 10 * losses.min():
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("Test loss, logarithmic")


def _title(results: DataFrame, note: str) -> tuple[str, str]:
    if results.empty:
        return "No results yet", note
    first = results.iloc[0]
    title = f"{first['network']} on {first['dataset']}" if first["dataset"] else str(first["network"])
    if first["dataset_test"] and first["dataset_test"] != first["dataset"]:
        title += f", tested on {first['dataset_test']}"
    return title, ", ".join(part for part in (note or _retraining(results), str(first["variant"])) if part)


def _retraining(results: DataFrame) -> str:
    epochs = sorted(set(compressed(results)["epochs"].dropna()))
    if not epochs:
        return ""
    if epochs == [0]:
        return "no retraining"
    ends = " to ".join(f"{e:g}" for e in epochs[:: max(1, len(epochs) - 1)])
    return f"{ends} epoch{'' if epochs == [1] else 's'} of retraining"


def _legend_title(results: DataFrame, points: DataFrame, band: Band) -> str:
    cells = compressed(results)
    nets, repetitions = cells["net"].nunique(), cells["repetition"].nunique()
    of = f"{nets} network{'s' if nets != 1 else ''}" + (f" × {repetitions} repetitions" if repetitions > 1 else "")  # noqa: RUF001
    if not len(points) or points["cells"].max() <= 1:
        return of
    spread = "± 1 std. dev." if band == "std" else "smallest to largest"
    return f"mean, band: {spread}\nof {of}"


def _legend_name(label: str, naming: Naming) -> str:
    return escaping.plot(naming.name(label)) if label != REFERENCE else "Reference (uncompressed)"


def _explain(
    figure: Figure, axes: Axes, results: DataFrame, quantity: str, names: Mapping[str, str], points: DataFrame
) -> None:
    """Say in the picture what it does not show: methods without a curve, points that average fewer networks."""
    drawn, finished = set(points["label"]), set(compressed(results)["label"])
    unfinished = [name for label, name in names.items() if label not in finished]
    unmoved = [name for label, name in names.items() if label in finished and label not in drawn]
    texts = []
    if unmoved:
        texts.append(f"Not drawn, removes no {QUANTITY_LABELS[quantity]}: {', '.join(unmoved)}.")
    if unfinished:
        texts.append(f"No finished cell: {', '.join(unfinished)}.")
    if len(points) and not points["complete"].all():
        texts.append("Some points average fewer networks than others (cells unfinished, failed or infeasible).")
    if points.empty:
        axes.text(0.5, 0.5, "nothing to draw yet", transform=axes.transAxes, ha="center", va="center", color="#777777")
    if texts:
        lines = textwrap.wrap("  ".join(texts), int(figure.get_figwidth() * 17))
        figure.supxlabel(escaping.plot("\n".join(lines)), fontsize=7, color="#444444", x=0.012, ha="left")
