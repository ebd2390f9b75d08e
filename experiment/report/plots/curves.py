"""The elements of plots: curves of labels and keep ratios, the reference line, and ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from experiment.report.label_styles import COLORS, REFERENCE_COLOR, Look
from experiment.report.plots.figure import TICK_SIZE, place_legend
from experiment.report.plots.marks import mark
from experiment.report.results_table import REFERENCE
from experiment.report.words import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from pandas import DataFrame

REFERENCE_NAME = "Reference (uncompressed)"
DIGIT_WIDTH, DIGIT_GAP = 0.64, 0.5  # of a digit and between numbers, as fractions of the font size
Bounds = tuple[float, float]


def draw_curve(axes: Axes, x: Any, y: Any, look: Look, **more: Any) -> Any:
    """Draw the curve of a label and return its line. A single point has a marker, but no line in the legend."""
    style = {"color": look.color, "marker": look.marker, "linewidth": 1.5, "markersize": 4.5, "zorder": 3}
    dashes = look.dashes if len(x) > 1 else "none"
    face = look.color if look.filled else "white"
    (line,) = axes.plot(x, y, linestyle=dashes, markerfacecolor=face, **{**style, **more})
    return line


def draw_reference(axes: Axes, value: float, band: Bounds | None = None) -> Any:
    """Draw the reference networks as a dashed horizontal line, optionally with a band, and return the line."""
    if band is not None:
        mark(axes.axhspan(*band, color=REFERENCE_COLOR, alpha=0.15, linewidth=0, zorder=0), REFERENCE)
    line = axes.axhline(value, color=REFERENCE_COLOR, linestyle=(0, (6, 3)), linewidth=1, zorder=1)
    return mark(line, REFERENCE)


def shades_of(keeps: Iterable[float]) -> dict[float, Any]:
    """A color for every keep ratio, from light to dark as the ratio falls."""
    import matplotlib

    falling = sorted({keep for keep in keeps if not math.isnan(keep)}, reverse=True)
    palette = matplotlib.colormaps["viridis"]
    return {keep: palette(0.9 * place / max(1, len(falling) - 1)) for place, keep in enumerate(falling)}


def draw_keep_ratios(
    axes: Axes, rows: DataFrame, x: str, y: str, shades: Mapping[float, Any], unit: float = 1.0
) -> dict[float, Any]:
    """Draw the mean of column `y`, times `unit`, against column `x`: one line per keep ratio.

    Returns: keep ratio -> line; NaN for cells without a keep ratio.
    """
    lines: dict[float, Any] = {}
    for keep, curve in rows.groupby("keep_target", dropna=False):
        ratio, mean = float(str(keep)), unit * curve.groupby(x)[y].mean()
        (lines[ratio],) = axes.plot(mean.index, mean, color=shades.get(ratio, COLORS[0]), linewidth=1.3, marker=".")
    return lines


def place_keep_legend(figure: Figure, lines: Mapping[float, Any]) -> None:
    """Add a legend of keep ratios."""
    falling = sorted((keep for keep in lines if not math.isnan(keep)), reverse=True)
    place_legend(figure, [(lines[keep], numbers.keep(keep)) for keep in falling], "keep ratio")


def whole_ticks(axes: Axes) -> None:
    """Label the x axis with integers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def plain_ticks(axes: Axes, write: Callable[[float], str] = "{:g}".format) -> None:
    """Label the ticks of the x axis with plain numbers; where labels would overlap, the rounder number is kept."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    def shown(value: float, _: object) -> str:
        return write(value) if value in _with_room(axes, write) else ""

    axes.xaxis.set_major_formatter(FuncFormatter(shown))
    axes.xaxis.set_minor_locator(NullLocator())


def _with_room(axes: Axes, write: Callable[[float], str]) -> set[float]:
    """The ticks whose labels do not overlap at the current size of the axes."""
    low, high = sorted(axes.get_xlim())
    ticks = [float(tick) for tick in axes.xaxis.get_majorticklocs() if low <= tick <= high]
    pixels = axes.figure.dpi / 72 * TICK_SIZE
    placed: dict[float, tuple[float, float]] = {}
    for tick in sorted(ticks, key=_roundness):
        middle = float(axes.transData.transform((tick, axes.get_ylim()[0]))[0])
        half = (DIGIT_WIDTH * len(write(tick)) + DIGIT_GAP) / 2 * pixels
        if all(abs(middle - other) >= half + wide for other, wide in placed.values()):
            placed[tick] = (middle, half)
    return set(placed)


def _roundness(tick: float) -> tuple[int, float]:
    """Sort key: powers of ten first, then 5 and 2 times those, then the rest; large numbers before small ones."""
    return {"1.0": 0, "5.0": 1, "2.0": 2}.get(f"{tick:.1e}"[:3], 3), -tick
