"""Sizes, fonts and files of all figures: matplotlib without global state, files that depend on the data alone."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.files import whole_file
from experiment.report.naming import plot_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
PANEL_WIDTH, HEIGHT, LEGEND_WIDTH = 3.9, 3.5, 1.9  # inches
LEGEND_ROWS = 16


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
    axes.tick_params(labelsize=9)
    axes.xaxis.label.set_fontsize(10)
    axes.yaxis.label.set_fontsize(10)


def place_legend(figure: Figure, entries: Sequence[tuple[Any, str]], title: str = "") -> None:
    """One legend for all panels, at the right of them, never over a curve."""
    if entries:
        figure.legend(
            [handle for handle, _ in entries], [name for _, name in entries], loc="outside right center", fontsize=9,
            frameon=False, title=title or None, title_fontsize=8, handlelength=3.0, alignment="left",
            ncols=1 + (len(entries) - 1) // LEGEND_ROWS,
        )  # fmt: skip


def set_title(figure: Figure, *lines: str) -> None:
    """One to a few lines at the upper left, broken where they would run into the legend."""
    width = int((figure.get_figwidth() - LEGEND_WIDTH) * 13)  # letters of the title's size an inch
    broken = [part for line in lines if line for part in textwrap.wrap(plot_text(line), max(40, width))]
    figure.suptitle("\n".join(broken), fontsize=10, x=0.012, ha="left")


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf (TrueType fonts, which publishers ask for) and `stem`.png, whole or not at all.

    Files carry no date and no software version, so that equal data give equal files.
    """
    import matplotlib

    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("pdf", "png")]
    metadata: list[dict[str, Any]] = [{"CreationDate": None, "Producer": None, "Creator": None}, {"Software": None}]
    with matplotlib.rc_context({"pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a label in another script
        for path, facts in zip(paths, metadata, strict=True):
            with whole_file(path) as partial:
                figure.savefig(partial, format=path.suffix[1:], dpi=DPI, metadata=facts)
            figure.set_layout_engine("none")  # the layout is found: the second file has the same one
    return paths
