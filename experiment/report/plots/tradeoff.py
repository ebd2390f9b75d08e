"""The trade-off: a metric or the loss against the share of parameters, FLOPs or bytes that is removed."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any, Literal

from experiment import escaping
from experiment.errors import ConfigError
from experiment.report.label_styles import LabelStyles, Look
from experiment.report.mean_and_spread import Quantity, keep_column, summarize
from experiment.report.plots.curves import REFERENCE_NAME, draw_curve, draw_reference, log_ticks, plain_ticks
from experiment.report.plots.figure import new_figure, place_legend, set_panel_title, set_title
from experiment.report.plots.marks import mark
from experiment.report.primary_metric import AGREEMENT, BEFORE, ReportedMetric, metric_named, primary_metric
from experiment.report.results_table import compressed, labels_of, metrics_of, references, select_variant, variants_of
from experiment.report.words import titles
from experiment.report.words.points import cells_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

Scale = Literal["linear", "log"]
Limits = tuple[float | None, float | None]
Edges = tuple[float, float, float]  # mean, lower and upper edge of a band, in units of the axis
CLOSE_UP = 5.0  # percentage points, or percent of the reference, that the close-up shows on the worse side
LOG_TICKS = (100, 70, 50, 30, 20, 10, 7, 5, 3, 2, 1, 0.7, 0.5, 0.3, 0.2, 0.1)
FEWER_TICKS = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)
MOST_TICKS = 11


def plot_tradeoff(
    results: DataFrame,
    quantity: Quantity = "parameters",
    metric: str | None = None,
    *,
    variant: str | None = None,
    scale: Scale = "linear",
    keep_limits: Limits = (None, None),
    styles: LabelStyles | None = None,
    note: str = "",
) -> Figure:
    """Draw one curve per label: the mean over networks and repetitions at every keep ratio.

    Points lie at the *achieved* size; bands are one sample standard deviation wide in each direction. The reference
    network is a dashed line. If curves fall far, a second panel shows the first five points below it.

    Args:
        results: rows of results.csv, of one network and dataset.
        metric: a column: the primary metric (the default, top1 of classification), `<primary>_before_retraining`,
            another metric, loss, flips, kl or worst_class_drop.
        variant: the variant to draw; may be omitted if there is only one.
        scale: `linear` shows the share removed, `log` the share kept on a logarithmic axis.
        keep_limits: smallest and largest keep ratio on the x axis.
        styles: names and colors of labels.
        note: text for the second line of the title, such as the mode.

    Returns: a figure outside matplotlib's global state: save it with `figure.savefig("x.pdf")`, or display it in a
        notebook.
    Raises: ConfigError: unknown quantity, metric or variant, or several networks.

    Example:
        >>> results = load_results("data/results/digits/prune/lenet5")
        >>> plot_tradeoff(results, "flops").savefig("tradeoff.pdf")
    """
    keep = keep_column(quantity)
    chosen, styles = select_variant(results, variant), styles or LabelStyles()
    shown = _shown(chosen, metric)
    points = _drawable(summarize(chosen), keep, shown.name)
    reference = _reference(chosen, shown)
    points["words"] = cells_in_words(points, styles, shown, reference[0] / shown.scale if reference else math.nan)
    wide = _falls_far(points, shown, reference)
    figure, panels = new_figure(2 if wide else 1)
    looks, entries = styles.looks(labels_of(results)), []
    for axes in panels:
        lines = _draw_curves(axes, points, keep, shown, scale, looks)
        entries = [(line, styles.name(label)) for label, line in lines.items()]
        if reference is not None:
            entries.append((draw_reference(axes, reference[0], reference[1:]), REFERENCE_NAME))
        _label_axes(axes, quantity, shown, scale, keep_limits, points[keep])
    if not shown.falls and shown.unit == "value":
        _maybe_logarithmic(panels[0], points[shown.name])
    if wide and reference is not None:
        set_panel_title(panels[0], "whole range")
        _zoom_in(panels[1], points[shown.name], shown, reference)
    second = titles.joined(note, titles.retraining_in_words(chosen), *variants_of(chosen))
    set_title(figure, titles.network_on_dataset(chosen), second)
    place_legend(figure, entries, _legend_title(chosen, points))
    _explain(figure, panels[0], chosen, quantity, styles, points)
    return figure


def _shown(results: DataFrame, metric: str | None) -> ReportedMetric:
    """The metric to draw."""
    primary = primary_metric(results)
    of_classes = titles.METRICS if primary.name == "top1" else ()
    known = dict.fromkeys([*of_classes, *metrics_of(results), "loss", primary.before, *AGREEMENT])
    if metric is not None and metric not in known:
        raise ConfigError(f"metric: must be one of {', '.join(known)}. Got {metric!r}.")
    return metric_named(metric or primary.name, primary)


def _drawable(points: DataFrame, keep: str, metric: str) -> DataFrame:
    """Points with a size and a value, except for labels that never remove any of this quantity."""
    points = points[points[keep].notna() & points[metric].notna()]
    if points.empty or keep == "keep_parameters":
        return points
    moves = points.groupby("label")[keep].transform("min") < 1 - 1e-12
    return points[moves | (points["method"] == "Fake")]


def _draw_curves(
    axes: Axes, points: DataFrame, keep: str, metric: ReportedMetric, scale: Scale, looks: dict[str, Look]
) -> dict[str, Any]:
    """One curve with a band per label; returns label -> line."""
    lines: dict[str, Any] = {}
    alpha = 0.18 if points["label"].nunique() <= 7 else 0.08
    for label, curve in points.groupby("label", sort=False):
        curve = curve.sort_values(keep, ascending=False)
        x = 100 * (1 - curve[keep] if scale == "linear" else curve[keep])
        y, look = metric.scale * curve[metric.name], looks[str(label)]
        lines[str(label)] = mark(draw_curve(axes, x, y, look), str(label), curve["words"])
        std = metric.scale * curve[f"{metric.name}_std"].fillna(0)
        if bool((std > 0).any()):
            low, high = (y - std).clip(lower=_floor(metric, y)), y + std
            mark(axes.fill_between(x, low, high, color=look.color, alpha=alpha, linewidth=0, zorder=2), str(label))
    return lines


def _floor(metric: ReportedMetric, y: Series[float]) -> float:
    """The least value of the lower edge of a band: a logarithmic axis has no zero."""
    least = float(y.min())
    if metric.falls:
        return min(0.0, least) if metric.unit == "fraction" else -math.inf
    return 0.5 * least if least > 0 else least


def _reference(results: DataFrame, metric: ReportedMetric) -> Edges | None:
    values = references(results).get(metric.name.removesuffix(BEFORE))
    values = None if values is None else values.dropna() * metric.scale
    if values is None or values.empty:
        return None
    mean, std = float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
    return mean, mean - std, mean + std


def _label_axes(
    axes: Axes, quantity: str, metric: ReportedMetric, scale: Scale, limits: Limits, keeps: Series[float]
) -> None:
    from matplotlib.ticker import FixedLocator

    smallest, largest = limits if limits[0] != limits[1] else (None, None)
    least = float(keeps.min()) if len(keeps) else math.nan
    label = titles.metric_title(metric.name).replace(" before", "\nbefore")  # too long for one line
    axes.set_ylabel(titles.axis_title(label, metric))
    name = titles.capitalized(titles.QUANTITIES[quantity])
    if scale == "linear":
        axes.set_xlabel(f"{name} removed (%)")
        left = 0.0 if largest is None else 100 * (1 - largest)
        fitting = 100 * (1 - least) + 2 if least >= 0.15 else 100.0
        right = fitting if smallest is None else 100 * (1 - smallest)
        axes.set_xlim(left - 1 if right - left > 10 else left, right or 100.0)
        return
    axes.set_xscale("log")
    axes.set_xlabel(f"{name} kept (%), logarithmic")
    low = 100 * (smallest or (0.01 if math.isnan(least) else least * 0.9))
    axes.set_xlim(100 * (largest if largest is not None else 1.0), low)
    ticks = [tick for tick in LOG_TICKS if low <= tick]
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) <= MOST_TICKS else FEWER_TICKS))
    plain_ticks(axes)


def _falls_far(points: DataFrame, metric: ReportedMetric, reference: Edges | None) -> bool:
    """Whether the worst point is more than three times as far from the reference as the close-up shows."""
    if metric.name == "loss" or points.empty or reference is None:
        return False
    sign = 1 if metric.falls else -1  # turns figures so that higher is better
    values = sign * metric.scale * points[metric.name]
    best = sign * reference[0]
    return best - float(values.min()) > 3 * _close_up(metric, best)


def _close_up(metric: ReportedMetric, base: float) -> float:
    """The height of the close-up, in units of the axis."""
    return CLOSE_UP if metric.unit == "fraction" else CLOSE_UP / 100 * abs(base)


def _zoom_in(axes: Axes, values: Series[float], metric: ReportedMetric, reference: Edges) -> None:
    sign = 1 if metric.falls else -1
    base, *edges = (sign * edge for edge in reference)
    top = max([*edges, *(sign * metric.scale * values.dropna())])
    height = _close_up(metric, base)
    upper = top + 0.08 * height
    upper = min(100.5, upper) if metric.unit == "fraction" else upper
    axes.set_ylim(*sorted([sign * (base - height), sign * upper]))
    side = "below" if metric.falls else "above"
    set_panel_title(axes, f"close-up: {CLOSE_UP:g} {metric.step} {side} the reference")


def _maybe_logarithmic(axes: Axes, values: Series[float]) -> None:
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
        axes.set_ylabel(f"{axes.get_ylabel()}, logarithmic")


def _legend_title(results: DataFrame, points: DataFrame) -> str:
    cells = compressed(results)
    nets, repetitions = cells["net"].nunique(), cells["repetition"].nunique()
    averaged = f"{nets} network{'s' if nets != 1 else ''}"
    averaged += f" × {repetitions} repetitions" if repetitions > 1 else ""  # noqa: RUF001
    if not len(points) or points["cells"].max() <= 1:
        return averaged
    return f"mean, band: ± 1 std. dev.\nof {averaged}"


def _explain(
    figure: Figure, axes: Axes, results: DataFrame, quantity: str, styles: LabelStyles, points: DataFrame
) -> None:
    """Note below the plot what it does not show: labels without a curve, and points that average fewer networks."""
    drawn, finished = set(points["label"]), set(compressed(results)["label"])
    labels = [label for label in labels_of(results) if label not in drawn]
    unmoved = [styles.name(label) for label in labels if label in finished]
    unfinished = [styles.name(label) for label in labels if label not in finished]
    texts = []
    if unmoved:
        texts.append(f"Not drawn, removes no {titles.QUANTITIES[quantity]}: {', '.join(unmoved)}.")
    if unfinished:
        texts.append(f"No finished cell: {', '.join(unfinished)}.")
    if len(points) and not points["complete"].all():
        texts.append("Some points average fewer networks than others (cells unfinished, failed or infeasible).")
    if points.empty:
        axes.text(0.5, 0.5, "nothing to draw yet", transform=axes.transAxes, ha="center", va="center", color="#777777")
    if texts:
        lines = textwrap.wrap("  ".join(texts), int(figure.get_figwidth() * 17))
        figure.supxlabel(escaping.plot("\n".join(lines)), fontsize=7, color="#444444", x=0.012, ha="left")
