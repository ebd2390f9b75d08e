"""How training went: loss and accuracy per epoch of the reference networks, accuracy per epoch of retraining."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.report.plots.figure import new_figure, place_legend, set_title
from experiment.report.plots.label_styles import COLORS, Naming
from experiment.report.words import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

CURVES = (  # panel, column of history.csv, unit, name
    (0, "loss", 1.0, "training"),
    (0, "valid_loss", 1.0, "validation"),
    (1, "top1", 100.0, "training"),
    (1, "valid_top1", 100.0, "validation"),
)


def plot_training(history: DataFrame, title: str = "") -> Figure:
    """Loss and top-1 accuracy after every epoch: mean over networks, band from the smallest to the largest.

    Args:
        history: rows of history.csv of the reference networks (`source.read_cells`).
    """
    figure, panels = new_figure(2)
    colors = {"training": COLORS[0], "validation": COLORS[1]}
    handles: dict[str, Any] = {}
    for panel, column, unit, name in CURVES:
        if column in history and history[column].notna().any():
            by_epoch = history.dropna(subset=[column]).groupby("epoch")[column]
            mean, low, high = unit * by_epoch.mean(), unit * by_epoch.min(), unit * by_epoch.max()
            dashes = "-" if name == "validation" else (0, (4, 1.5))
            done = mean.index + 1
            (handles[name],) = panels[panel].plot(done, mean, color=colors[name], linestyle=dashes, linewidth=1.5)
            panels[panel].fill_between(done, low, high, color=colors[name], alpha=0.18, linewidth=0)
    panels[0].set_ylabel("Loss")
    panels[1].set_ylabel("Top-1 accuracy (%)")
    for axes in panels:
        axes.set_xlabel("Epoch")
        _whole_epochs(axes)
    nets = history["net"].nunique()
    caption = "1 network" if nets == 1 else f"mean, band: smallest to\nlargest of {nets} networks"
    place_legend(figure, [(handle, name) for name, handle in handles.items()], caption)
    set_title(figure, title)
    return figure


def plot_retraining(history: DataFrame, names: Mapping[str, str] | None = None, title: str = "") -> Figure:
    """Validation accuracy after every epoch of retraining: a panel a label, a line a keep ratio, mean over networks.

    Args:
        history: rows of history.csv of compressed networks, at the keep ratios to draw.
    """
    import matplotlib

    naming = Naming(names or {})
    labels = list(dict.fromkeys(history["label"]))
    columns = min(4, max(2, math.ceil(math.sqrt(len(labels)))), len(labels))
    rows = math.ceil(len(labels) / columns)
    figure, panels = new_figure(columns, rows, height=2.1 * rows + 0.9)
    figure.set_figwidth(2.6 * columns + 1.6)
    keeps = sorted(set(history["keep_target"].dropna()), reverse=True)
    palette = matplotlib.colormaps["viridis"]
    shades = {keep: palette(0.9 * place / max(1, len(keeps) - 1)) for place, keep in enumerate(keeps)}
    handles: dict[float, Any] = {}
    for axes, label in zip(panels, labels, strict=False):
        own = history[history["label"] == label]
        for keep, curve in own.groupby("keep_target", dropna=False):
            ratio = float(str(keep))
            mean = 100 * curve.groupby("epoch")["valid_top1"].mean()
            (line,) = axes.plot(mean.index + 1, mean, color=shades.get(ratio, COLORS[0]), linewidth=1.3, marker=".")
            handles.setdefault(ratio, line)
        axes.set_title(escaping.plot(naming.name(str(label))), fontsize=9)
        _whole_epochs(axes)
    low = min(axes.get_ylim()[0] for axes in panels[: len(labels)])
    high = max(axes.get_ylim()[1] for axes in panels[: len(labels)])
    for axes in panels:
        axes.set_ylim(low, high)
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    figure.supylabel("Top-1 validation accuracy (%)", fontsize=10)
    figure.supxlabel("Epoch", fontsize=10)
    entries = [(handles[k], numbers.keep(k)) for k in sorted(handles, reverse=True) if not math.isnan(k)]
    place_legend(figure, entries, "keep ratio")
    set_title(figure, title)
    return figure


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
