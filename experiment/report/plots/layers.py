"""The share of its parameters that every layer keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.report.label_styles import LabelStyles
from experiment.report.plots.figure import new_figure, set_panel_title, set_title
from experiment.report.words import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray
    from pandas import DataFrame

SMALLEST_SHADE = 0.01  # shares below 1 % share a color
SHADES = 33  # colors between that and 100 % in report.html
MOST_NUMBERS = 200  # fields; heat maps with more have no numbers
MOST_LAYERS = 45  # layer names on the y axis


def typical_keeps(keeps: Sequence[float], count: int = 3) -> list[float]:
    """Up to `count` keep ratios in descending order, evenly spaced in the grid."""
    grid = sorted({keep for keep in keeps if not math.isnan(keep)}, reverse=True)
    if len(grid) <= count:
        return grid
    if count == 1:
        return [grid[len(grid) // 2]]
    return [grid[round(place * (len(grid) - 1) / (count - 1))] for place in range(count)]


def plot_layers(layers: DataFrame, styles: LabelStyles, title: str = "") -> Figure:
    """Draw one heat map per keep ratio: rows are layers, columns are labels, colors are means over networks.

    Labels without a keep ratio (their settings, or a search, determine the size) have a heat map of their own.

    Args:
        layers: rows of layers.csv at the keep ratios to draw, as returned by `read_cells`.
    """
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    order = list(dict.fromkeys(layers["layer"].astype(str)))
    tables = list(_tables(layers, order))
    height = min(9.0, 1.6 + max(0.17, 0.24 - 0.002 * len(order)) * max(6, len(order)))
    figure, panels = new_figure(len(tables), height=height, legend=False)
    palette = matplotlib.colormaps["cividis"].with_extremes(bad="#EEEEEE")
    norm = LogNorm(SMALLEST_SHADE, 1.0, clip=True)
    for axes, (heading, table) in zip(panels, tables, strict=True):
        values = table.to_numpy(dtype=float)
        axes.grid(visible=False)
        shades = values.clip(SMALLEST_SHADE)
        image = axes.imshow(shades, aspect="auto", norm=norm, cmap=palette, interpolation="nearest")
        set_panel_title(axes, heading)
        if sum(each.size for _, each in tables) <= MOST_NUMBERS:
            _annotate(axes, values)
        _name_ticks(axes, order if axes is panels[0] else [], [styles.name(label) for label in map(str, table)])
    panels[0].set_ylabel("Layer")
    bar = figure.colorbar(image, ax=panels, label="Parameters kept (%)", fraction=0.03, pad=0.02)
    bar.ax.yaxis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3, 1.0]))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    set_title(figure, title)
    return figure


def heat_maps(layers: DataFrame, styles: LabelStyles) -> dict[str, Any]:
    """The heat maps of every keep ratio as numbers: what the slider in report.html shows.

    Args:
        layers: rows of layers.csv, as returned by `read_cells`.

    Returns: `layers`: names; `maps`: for every keep ratio its title, names of labels and, per layer and label, the
        percentage kept (None if there is no such network); `colors`: from SMALLEST_SHADE to 100 %, on a log scale.
    """
    import matplotlib
    from matplotlib.colors import to_hex

    order = list(dict.fromkeys(layers["layer"].astype(str)))
    palette = matplotlib.colormaps["cividis"]
    maps = [
        {
            "title": heading,
            "labels": [styles.plain(label) for label in map(str, table)],
            "kept": [[None if math.isnan(share) else round(100 * share, 1) for share in row] for row in table.values],
        }
        for heading, table in _tables(layers, order)
    ]
    colors = [to_hex(palette(place / (SHADES - 1))) for place in range(SHADES)]
    return {"layers": order, "maps": maps, "colors": colors, "smallest": 100 * SMALLEST_SHADE}


def _tables(layers: DataFrame, order: Sequence[str]) -> Iterator[tuple[str, DataFrame]]:
    """The title of each heat map, and its shares: one row per layer, one column per label."""
    shares = layers["parameters"] / layers["parameters_before"]
    layers = layers.assign(layer=layers["layer"].astype(str), share=shares)
    given, own = layers.dropna(subset=["keep_target"]), layers[layers["keep_target"].isna()]
    found = [(f"keep ratio {numbers.keep(keep)}", given[given["keep_target"] == keep], given)
             for keep in sorted(set(given["keep_target"]), reverse=True)]  # fmt: skip
    for heading, rows, panel in [*found, *([("size set by the method", own, own)] if len(own) else [])]:
        means = rows.groupby(["layer", "label"])["share"].mean().unstack("label")
        yield heading, means.reindex(index=list(order), columns=list(dict.fromkeys(panel["label"])))


def _annotate(axes: Axes, table: ndarray[tuple[int, int]]) -> None:
    """Write percentages into the fields; a dash if there is no such network."""
    for row, values in enumerate(table):
        for column, value in enumerate(map(float, values)):
            missing = math.isnan(value)
            share = numbers.MISSING if missing else f"{100 * value:.{0 if value >= 0.0995 else 1}f}"
            color = "#777777" if missing else "black" if value > 0.13 else "white"
            axes.text(column, row, share, ha="center", va="center", fontsize=7, color=color)


def _name_ticks(axes: Axes, layers: Sequence[str], labels: Sequence[str]) -> None:
    names = list(map(escaping.plot, labels))
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    step = max(1, math.ceil(len(layers) / MOST_LAYERS))
    axes.set_yticks(range(0, len(layers), step), [escaping.plot(name) for name in layers[::step]], fontsize=7)
    axes.tick_params(length=0)
