"""Where a method takes it from: the share of its parameters that every layer keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from experiment import escaping
from experiment.report.plots.figure import new_figure, set_title
from experiment.report.plots.label_styles import Naming
from experiment.report.words import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray
    from pandas import DataFrame

NUM_KEEPS = 3
OWN_SIZE = "size of its own"
SMALLEST_SHADE = 0.01  # shares from 1 % to all have shades of their own

MOST_NUMBERS = 200  # fields that still get their number; with more, numbers are a blur and drawing them is slow


def typical_keeps(keeps: Sequence[float], count: int = NUM_KEEPS) -> list[float]:
    """Up to `count` keep ratios, from the largest to the smallest, evenly spaced in the grid."""
    grid = sorted({keep for keep in keeps if not math.isnan(keep)}, reverse=True)
    if len(grid) <= count:
        return grid
    return [grid[round(place * (len(grid) - 1) / (count - 1))] for place in range(count)]


def plot_layers(layers: DataFrame, names: Mapping[str, str] | None = None, title: str = "") -> Figure:
    """A heat map a keep ratio: rows are layers in the network's order, columns are labels, averaged over networks.

    Labels without a keep ratio, whose settings or a search decide the size, have a heat map of their own.

    Args:
        layers: rows of layers.csv, label and keep_target beside them (`source.read_cells`), at the keep ratios to draw.
    """
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    naming = Naming(names or {})
    order = list(dict.fromkeys(layers["layer"].astype(str)))
    tables = list(_tables(layers, order))
    fields = sum(table.size for _, table in tables)
    height = min(9.0, 1.6 + max(0.17, 0.24 - 0.002 * len(order)) * max(6, len(order)))
    figure, panels = new_figure(len(tables), height=height, legend=False)
    image = None
    palette = matplotlib.colormaps["cividis"].with_extremes(bad="#EEEEEE")
    for axes, (heading, table) in zip(panels, tables, strict=True):
        values = table.to_numpy(dtype=float)
        axes.grid(visible=False)
        norm = LogNorm(SMALLEST_SHADE, 1.0, clip=True)
        shades = values.clip(SMALLEST_SHADE)
        image = axes.imshow(shades, aspect="auto", norm=norm, cmap=palette, interpolation="nearest")
        axes.set_title(heading, fontsize=9)
        if fields <= MOST_NUMBERS:
            _annotate(axes, values)
        _name_ticks(
            axes,
            order if axes is panels[0] else [],
            [escaping.plot(naming.name(label)) for label in map(str, table.columns)],
        )
    panels[0].set_ylabel("Layer")
    if image is not None:
        bar = figure.colorbar(image, ax=panels, label="Layer's parameters kept (%)", fraction=0.03, pad=0.02)
        bar.ax.yaxis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3, 1.0]))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    set_title(figure, title)
    return figure


def _tables(layers: DataFrame, order: Sequence[str]) -> Iterator[tuple[str, DataFrame]]:
    """What a panel says and the shares in it: a row a layer, a column a label."""
    layers = layers.assign(
        layer=layers["layer"].astype(str), share=layers["parameters"] / layers["parameters_before"]
    )  # fmt: skip
    own = layers["keep_target"].isna()
    given = layers[~own]
    labels = list(dict.fromkeys(given["label"]))
    for keep in sorted(set(given["keep_target"]), reverse=True):
        found = given[given["keep_target"] == keep].groupby(["layer", "label"])["share"].mean().unstack("label")
        yield f"keep ratio {numbers.keep(keep)}", found.reindex(index=list(order), columns=labels)
    if own.any():
        found = layers[own].groupby(["layer", "label"])["share"].mean().unstack("label")
        yield OWN_SIZE, found.reindex(index=list(order), columns=list(dict.fromkeys(layers.loc[own, "label"])))


def _annotate(axes: Axes, table: ndarray[tuple[int, int]]) -> None:
    """Percentages in the fields, a dash where a method has no such network."""
    for row, values in enumerate(table):
        for column, value in enumerate(map(float, values)):
            missing = math.isnan(value)
            share = numbers.MISSING if missing else f"{100 * value:.{0 if value >= 0.0995 else 1}f}"
            color = "#777777" if missing else "black" if value > 0.13 else "white"
            axes.text(column, row, share, ha="center", va="center", fontsize=7, color=color)


def _name_ticks(axes: Axes, layers: Sequence[str], labels: Sequence[str]) -> None:
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    step = max(1, math.ceil(len(layers) / 45))
    axes.set_yticks(range(0, len(layers), step), [escaping.plot(name) for name in layers[::step]], fontsize=7)
    axes.tick_params(length=0)
