"""The loss of the primary metric when a layer alone is compressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiment import escaping
from experiment.report.label_styles import LabelStyles
from experiment.report.plots.figure import new_figure, set_panel_title, set_title
from experiment.report.plots.layers import MOST_LAYERS
from experiment.report.primary_metric import ReportedMetric
from experiment.report.words import numbers
from experiment.report.words.titles import capitalized

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLUMNS = 4  # panels side by side
LARGEST = 0.5  # losses above share a color
PANEL_WIDTH = 3.4  # inches, with the names of layers


def plot_sensitivity(rows: DataFrame, metric: ReportedMetric, styles: LabelStyles, title: str = "") -> Figure:
    """Draw one heat map per label: rows are layers, columns keep ratios of the layer, colors means over networks.

    Args:
        rows: of sensitivity.csv, of one variant.
    """
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import FuncFormatter

    rows = rows[rows["loss"].notna()]
    keeps = sorted(set(rows["keep"].astype(float)), reverse=True)
    tables = {
        str(label): own.groupby(["layers", "keep"], sort=False)["loss"].mean().unstack("keep").reindex(columns=keeps)
        for label, own in rows.groupby("label", sort=False)
    }
    columns = min(COLUMNS, len(tables))
    lines = math.ceil(len(tables) / columns)
    height = lines * min(9.0, 1.2 + 0.2 * max(5, *map(len, tables.values()), 0)) + 0.4
    figure, panels = new_figure(columns, lines, height=height, panel_width=PANEL_WIDTH, legend=False)
    norm = PowerNorm(0.5, 0.0, min(LARGEST, max(0.01, float(rows["loss"].max()))), clip=True)
    palette = matplotlib.colormaps["cividis_r"].with_extremes(bad="#EEEEEE")
    for axes, (label, table) in zip(panels, tables.items(), strict=False):
        axes.grid(visible=False)
        image = axes.imshow(table.to_numpy(float), aspect="auto", norm=norm, cmap=palette, interpolation="nearest")
        set_panel_title(axes, styles.name(label))
        _annotate(axes, table, keeps, norm.vmax or 1.0)
    for axes in panels[len(tables) :]:
        axes.set_visible(False)
    text = f"{capitalized(metric.loss_title)} ({metric.step})"
    bar = figure.colorbar(image, ax=panels, label=escaping.plot(text), fraction=0.03, pad=0.02)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    figure.supxlabel("Keep ratio of the layer alone", fontsize=10)
    set_title(figure, title)
    return figure


def _annotate(axes: Axes, table: DataFrame, keeps: Sequence[float], largest: float) -> None:
    """Name layers and keep ratios, and write the loss into every field if there is room."""
    names = [first + (f" +{len(rest)}" if rest else "") for first, *rest in (str(n).split(" ") for n in table.index)]
    step = math.ceil(len(names) / MOST_LAYERS)
    axes.set_yticks(range(0, len(names), step), [escaping.plot(name) for name in names[::step]], fontsize=7)
    axes.set_xticks(range(len(keeps)), [numbers.keep(keep) for keep in keeps], fontsize=8)
    axes.tick_params(length=0)
    for row, values in enumerate(table.to_numpy(float) if step == 1 else ()):
        for column, value in enumerate(values):
            text = numbers.MISSING if math.isnan(value) else f"{100 * value:.1f}".replace("-", numbers.MINUS)
            color = "white" if value > 0.3 * largest else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
