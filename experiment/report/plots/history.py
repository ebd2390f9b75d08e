"""Training, retraining and L-C over time, from history.csv."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiment.report.label_styles import COLORS, LabelStyles
from experiment.report.plots.curves import draw_keep_ratios, log_ticks, place_keep_legend, shades_of, whole_ticks
from experiment.report.plots.figure import (
    new_figure,
    place_legend,
    set_common_labels,
    set_panel_title,
    set_title,
    small_panels,
)
from experiment.report.primary_metric import ReportedMetric
from experiment.report.words.titles import axis_label, capitalized, validation_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

LC_COLUMNS = ("iteration", "relative_distance")
MOST_LC_LABELS = 4
TOP1 = ReportedMetric()


def plot_training(history: DataFrame, title: str = "", metric: ReportedMetric = TOP1) -> Figure:
    """Loss and primary metric of reference networks per epoch: mean over networks, band from smallest to largest.

    Args:
        history: rows of history.csv, as returned by `read_cells`.
    """
    figure, panels = new_figure(2)
    lines: dict[str, Any] = {}
    for panel, column, name in (
        (0, "loss", "training"), (0, "valid_loss", "validation"),
        (1, metric.name, "training"), (1, f"valid_{metric.name}", "validation"),
    ):  # fmt: skip
        unit = metric.scale if panel else 1.0
        if column in history and history[column].notna().any():
            by_epoch = history.dropna(subset=[column]).groupby("epoch")[column]
            mean, low, high = unit * by_epoch.mean(), unit * by_epoch.min(), unit * by_epoch.max()
            color, dashes = (COLORS[1], "-") if name == "validation" else (COLORS[0], (0, (4, 1.5)))
            done = mean.index + 1
            (lines[name],) = panels[panel].plot(done, mean, color=color, linestyle=dashes, linewidth=1.5)
            panels[panel].fill_between(done, low, high, color=color, alpha=0.18, linewidth=0)
    for axes, label in zip(panels, ("Loss", axis_label(capitalized(metric.title), metric)), strict=True):
        axes.set_ylabel(label)
        axes.set_xlabel("Epoch")
        whole_ticks(axes)
    nets = history["net"].nunique()
    averaged = "1 network" if nets == 1 else f"mean, band: smallest to\nlargest of {nets} networks"
    place_legend(figure, [(line, name) for name, line in lines.items()], averaged)
    set_title(figure, title)
    return figure


def plot_retraining(history: DataFrame, styles: LabelStyles, title: str = "", metric: ReportedMetric = TOP1) -> Figure:
    """Primary metric on the validation part per epoch of retraining, mean over networks.

    One panel per label, one line per keep ratio.

    Args:
        history: rows of history.csv at the keep ratios to draw, as returned by `read_cells`.
    """
    labels, column = list(dict.fromkeys(history["label"])), f"valid_{metric.name}"
    figure, panels = small_panels([styles.name(label) for label in labels])
    shades = shades_of(history["keep_target"])
    lines: dict[float, Any] = {}
    history = history.assign(epoch=history["epoch"] + 1)
    for axes, label in zip(panels, labels, strict=True):
        lines |= draw_keep_ratios(axes, history[history["label"] == label], "epoch", column, shades, metric.scale)
        whole_ticks(axes)
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)
    set_common_labels(figure, "Epoch", validation_title(metric))
    place_keep_legend(figure, lines)
    set_title(figure, title)
    return figure


def plot_convergence(history: DataFrame, styles: LabelStyles, title: str = "", metric: ReportedMetric = TOP1) -> Figure:
    """Primary metric on the validation part (top) and distance to the compressed weights (bottom) per step of L-C.

    One column per label, one line per keep ratio, mean over networks. Labels from the fifth on are not drawn.

    Args:
        history: rows of history.csv (LC_COLUMNS and the metric) of networks of mode lc, at the keep ratios to draw.
    """
    labels = list(dict.fromkeys(history["label"]))[:MOST_LC_LABELS]
    count = len(labels)
    figure, panels = new_figure(count, 2, height=5.2, panel_width=2.8)
    shades = shades_of(history["keep_target"])
    lines: dict[float, Any] = {}
    far = history.loc[history["relative_distance"] > 0, "relative_distance"]
    for above, below, label in zip(panels[:count], panels[count:], labels, strict=True):
        rows = history[history["label"] == label]
        lines |= draw_keep_ratios(above, rows, "iteration", f"valid_{metric.name}", shades, metric.scale)
        draw_keep_ratios(below, rows[rows["relative_distance"] > 0], "iteration", "relative_distance", shades)
        set_panel_title(above, styles.name(label))
        if far.max() > 10 * far.min():
            below.set_yscale("log")
            log_ticks(below.yaxis)
        for axes in (above, below):
            whole_ticks(axes)
    panels[0].set_ylabel(validation_title(metric))
    panels[count].set_ylabel("Relative distance to the\ncompressed weights")
    set_common_labels(figure, "Step", "")
    place_keep_legend(figure, lines)
    set_title(figure, title)
    return figure
