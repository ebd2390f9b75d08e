"""The primary metric against a measured cost of deployment, in every runtime, with the Pareto front over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiment.deploy.formats import FORMATS
from experiment.errors import ConfigError
from experiment.report.deployments import FIGURE, TORCH, cost_in_words, costs_of, deployments, pareto_front
from experiment.report.label_styles import MARKERS, REFERENCE_COLOR, LabelStyles
from experiment.report.plots.cost import WIDE
from experiment.report.plots.curves import REFERENCE_NAME, log_ticks, plain_ticks
from experiment.report.plots.figure import new_figure, place_legend, set_title
from experiment.report.plots.marks import mark
from experiment.report.primary_metric import primary_metric
from experiment.report.results_table import REFERENCE, labels_of, select_variant
from experiment.report.words import titles
from experiment.report.words.points import cell_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

UNITS = {"latency": ("ms", 1.0), "bytes": ("kB", 1e-3), "memory": ("kB", 1e-3)}
RUNTIME_MARKERS = dict(zip((TORCH, *FORMATS), MARKERS, strict=False))


def plot_deployment(
    results: DataFrame, cost: str, *, variant: str | None = None, styles: LabelStyles | None = None, note: str = ""
) -> Figure:
    """Draw one point per method, keep ratio and runtime: colors are methods, markers runtimes.

    The gray line is the Pareto front: no other network, in any runtime, is as good at a lower cost.

    Args:
        results: rows of results.csv, of one network and dataset.
        cost: `bytes`, `latency_b<batch>` or `memory_b<batch>`.
        variant, styles, note: as in `plot_tradeoff`.

    Raises: ConfigError: this cost was not measured, or unknown variant.
    """
    styles, chosen = styles or LabelStyles(), select_variant(results, variant)
    table, metric = deployments(chosen), primary_metric(chosen)
    if cost not in costs_of(table):
        raise ConfigError(f"cost: must be one of {', '.join(costs_of(table))}, which were measured. Got {cost!r}.")
    unit, scale = UNITS[cost.partition("_")[0]]
    figure, (axes,) = new_figure(1)
    colors = {label: look.color for label, look in styles.looks(labels_of(chosen)).items()}
    front = pareto_front(table, cost, metric.better)
    costs, figures = [*front[cost], table[cost].max()], [*front[FIGURE], front[FIGURE].iloc[-1]]
    steps = [scale * x for x in costs], [metric.scale * y for y in figures]
    axes.step(*steps, where="post", color="#999999", linewidth=1, zorder=1)
    table = table[table[cost].notna()]
    for (label, runtime), points in table.groupby(["label", "runtime"], sort=False):
        color, size = (REFERENCE_COLOR, 7) if label == REFERENCE else (colors[str(label)], 5)
        (line,) = axes.plot(
            scale * points[cost], metric.scale * points[FIGURE], linestyle="none", color=color, markersize=size,
            marker=RUNTIME_MARKERS[str(runtime)], zorder=3, alpha=0.85, markeredgewidth=0.6, markeredgecolor="white",
        )  # fmt: skip
        name = REFERENCE_NAME if label == REFERENCE else styles.plain(str(label))
        mark(line, str(label), [f"{cell_name(name, keep)}, {runtime}" for keep in points["keep_target"]])
    axes.set_ylabel(titles.axis_label(titles.metric_title(metric.name), metric))
    axes.set_xlabel(f"{titles.capitalized(cost_in_words(cost))} ({unit})")
    if table[cost].min() > 0 and table[cost].max() > WIDE * table[cost].min():
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        plain_ticks(axes)
    device = str(chosen.iloc[0].get("latency_device", "")) if unit == "ms" else ""
    title = titles.joined(note, titles.retraining_in_words(chosen), str(chosen.iloc[0]["variant"]), device)
    set_title(figure, titles.network_on_dataset(chosen), title)
    place_legend(figure, _entries(table, colors, styles))
    return figure


def _entries(table: DataFrame, colors: dict[str, str], styles: LabelStyles) -> list[tuple[object, str]]:
    """Methods by color, runtimes by marker, and the front."""
    from matplotlib.lines import Line2D

    known = {**colors, REFERENCE: REFERENCE_COLOR}
    entries: list[tuple[object, str]] = []
    for label in dict.fromkeys(map(str, table["label"])):
        name = REFERENCE_NAME if label == REFERENCE else styles.name(label)
        line = Line2D([], [], color=known.get(label, REFERENCE_COLOR), linewidth=3)
        entries.append((mark(line, label), name))
    for runtime in dict.fromkeys(map(str, table["runtime"])):
        marker = RUNTIME_MARKERS[runtime]
        entries.append((Line2D([], [], linestyle="none", color="#333333", marker=marker, markersize=5), runtime))
    return [*entries, (Line2D([], [], color="#999999", linewidth=1), "Pareto front")]
