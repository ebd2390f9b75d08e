"""How learning and compressing came together: accuracy of the compressed networks, and their distance, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.report.plots.figure import new_figure, place_legend, set_title
from experiment.report.plots.label_styles import COLORS, Naming
from experiment.report.words import numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

LC_COLUMNS = ("iteration", "valid_top1", "relative_distance")
MOST_LABELS = 4  # columns of the figure; the rest stands in history.csv


def plot_convergence(history: DataFrame, names: Mapping[str, str] | None = None, title: str = "") -> Figure:
    """A column a label, a line a keep ratio, mean over networks: validation accuracy above, distance below.

    Args:
        history: rows of history.csv (LC_COLUMNS) of networks of mode lc, at the keep ratios to draw.
    """
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    naming = Naming(names or {})
    labels = list(dict.fromkeys(history["label"]))[:MOST_LABELS]
    figure, panels = new_figure(len(labels), 2, height=5.2)
    figure.set_figwidth(2.8 * len(labels) + 2.2)
    keeps = sorted(set(history["keep_target"].dropna()), reverse=True)
    palette = matplotlib.colormaps["viridis"]
    shades = {keep: palette(0.9 * place / max(1, len(keeps) - 1)) for place, keep in enumerate(keeps)}
    handles: dict[float, Any] = {}
    for place, label in enumerate(labels):
        above, below = panels[place], panels[len(labels) + place]
        for keep, curve in history[history["label"] == label].groupby("keep_target", dropna=False):
            ratio = float(str(keep))
            mean = curve.groupby("iteration")[["valid_top1", "relative_distance"]].mean()
            style: dict[str, Any] = {"color": shades.get(ratio, COLORS[0]), "linewidth": 1.3, "marker": "."}
            (line,) = above.plot(mean.index, 100 * mean["valid_top1"], **style)
            apart = mean["relative_distance"][mean["relative_distance"] > 0]  # a logarithm has no zero
            below.plot(apart.index, apart, **style)
            handles.setdefault(ratio, line)
        above.set_title(escaping.plot(naming.name(str(label))), fontsize=9)
        below.set_yscale("log")
        for axes in (above, below):
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panels[0].set_ylabel("Top-1 validation accuracy (%)")
    panels[len(labels)].set_ylabel("Relative distance to the\ncompressed weights")
    figure.supxlabel("Step", fontsize=10)
    entries = [(handles[k], numbers.keep(k)) for k in sorted(handles, reverse=True) if not math.isnan(k)]
    place_legend(figure, entries, "keep ratio")
    set_title(figure, title)
    return figure
