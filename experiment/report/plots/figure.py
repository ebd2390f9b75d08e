"""Sizes, fonts and files of all figures: matplotlib without global state, files that depend on the data alone."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

DPI = 200
PANEL_WIDTH, HEIGHT, LEGEND_WIDTH = 3.9, 3.5, 1.9  # inches
LEGEND_ROWS = 16
TICK_SIZE = 9  # points
DIGIT_WIDTH, DIGIT_GAP = 0.64, 0.5  # of a digit and between numbers, in sizes of the font


def new_figure(
    columns: int, rows: int = 1, *, height: float = HEIGHT, legend: bool = True
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `rows` x `columns` panels in the style of all plots, with room for a legend at the right."""
    from matplotlib.figure import Figure

    width = columns * PANEL_WIDTH + (LEGEND_WIDTH if legend else 0.0)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    panels = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
    for axes in panels:
        dress(axes)
    return figure, panels


def dress(axes: Axes) -> None:
    """Light grid, two spines, readable ticks."""
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TICK_SIZE)
    axes.xaxis.label.set_fontsize(10)
    axes.yaxis.label.set_fontsize(10)


def place_legend(figure: Figure, entries: Sequence[tuple[Any, str]], title: str = "") -> None:
    """One legend for all panels, at the right of them, never over a curve; the figure grows where it is a wide one."""
    if entries:
        legend = figure.legend(
            [handle for handle, _ in entries], [escaping.plot(name) for _, name in entries],
            loc="outside right center", fontsize=9, frameon=False,
            title=escaping.plot(title) or None, title_fontsize=8, handlelength=3.0, alignment="left",
            ncols=1 + (len(entries) - 1) // LEGEND_ROWS,
        )  # fmt: skip
        figure.set_figwidth(figure.get_figwidth() + max(0.0, _width(figure, legend) - LEGEND_WIDTH))


def _width(figure: Figure, legend: Legend) -> float:
    """A legend's width in inches."""
    from matplotlib.backends.backend_agg import RendererAgg

    renderer = RendererAgg(1, 1, figure.dpi)  # type: ignore[no-untyped-call]
    return float(legend.get_window_extent(renderer).width) / figure.dpi


def plain_ticks(axes: Axes, write: Callable[[float], str] = "{:g}".format) -> None:
    """Plain numbers at the x axis's ticks; of those that would run into each other the rounder one stays."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    def shown(value: float, _: object) -> str:
        return write(value) if value in _with_room(axes, write) else ""

    axes.xaxis.set_major_formatter(FuncFormatter(shown))
    axes.xaxis.set_minor_locator(NullLocator())


def _with_room(axes: Axes, write: Callable[[float], str]) -> set[float]:
    """The ticks whose numbers do not touch, at the size that the axes have now."""
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
    """Powers of ten first, then those of 5 and 2, then the rest; large numbers before small ones."""
    return {"1.0": 0, "5.0": 1, "2.0": 2}.get(f"{tick:.1e}"[:3], 3), -tick


def set_title(figure: Figure, *lines: str) -> None:
    """One to a few lines at the upper left, broken where they would run into the legend."""
    width = int((figure.get_figwidth() - LEGEND_WIDTH) * 13)  # letters of the title's size an inch
    broken = [part for line in lines if line for part in textwrap.wrap(escaping.plot(line), max(40, width))]
    figure.suptitle("\n".join(broken), fontsize=10, x=0.012, ha="left")


def plot_files(stem: Path) -> list[Path]:
    """The files of a plot: its PDF and its PNG."""
    return [stem.with_name(f"{stem.name}.{ending}") for ending in ("pdf", "png")]


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf (TrueType fonts, which publishers ask for) and `stem`.png, whole or not at all.

    Files carry no date and no software version, so that equal data give equal files.
    """
    import matplotlib

    paths = plot_files(stem)
    metadata: list[dict[str, Any]] = [{"CreationDate": None, "Producer": None, "Creator": None}, {"Software": None}]
    with matplotlib.rc_context({"pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a label in another script
        for path, facts in zip(paths, metadata, strict=True):
            with whole_file(path) as partial:
                figure.savefig(partial, format=path.suffix[1:], dpi=DPI, metadata=facts)
            figure.set_layout_engine("none")  # the layout is found: the second file has the same one
    return paths
