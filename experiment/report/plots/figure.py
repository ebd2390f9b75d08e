"""Size, fonts, legend, title and files of all figures, without matplotlib's global state."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.files import whole_file
from experiment.report.plots.marks import mark, read_mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
PANEL_WIDTH, HEIGHT, LEGEND_WIDTH = 3.9, 3.5, 1.9  # inches
SMALL_WIDTH, SMALL_HEIGHT = 2.6, 2.1  # inches, of one of many panels
LEGEND_ROWS = 16
TICK_SIZE = 9  # points


def new_figure(
    columns: int, rows: int = 1, *, height: float = HEIGHT, panel_width: float = PANEL_WIDTH, legend: bool = True
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `rows` x `columns` panels, with room for a legend on the right. Sizes are in inches."""
    from matplotlib.figure import Figure

    width = columns * panel_width + (LEGEND_WIDTH if legend else 0.0)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    panels = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
    for axes in panels:
        axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=TICK_SIZE)
        axes.xaxis.label.set_fontsize(10)
        axes.yaxis.label.set_fontsize(10)
    return figure, panels


def small_panels(titles: Sequence[str], most_columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure with one small panel per title."""
    columns = min(most_columns, max(2, math.ceil(math.sqrt(len(titles)))), len(titles))
    rows = math.ceil(len(titles) / columns)
    figure, panels = new_figure(columns, rows, height=SMALL_HEIGHT * rows + 0.9, panel_width=SMALL_WIDTH)
    for axes, title in zip(panels, titles, strict=False):
        set_panel_title(axes, title)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    return figure, panels[: len(titles)]


def set_panel_title(axes: Axes, text: str) -> None:
    """Write a small title above a panel."""
    axes.set_title(escaping.plot(text), fontsize=9)


def set_common_labels(figure: Figure, x: str, y: str) -> None:
    """Label the x and y axes of all panels at once."""
    figure.supxlabel(escaping.plot(x), fontsize=10)
    figure.supylabel(escaping.plot(y), fontsize=10)


def place_legend(figure: Figure, entries: Sequence[tuple[Any, str]], title: str = "") -> None:
    """Add one legend for all panels on the right; a figure with a wide legend grows.

    Args:
        entries: pairs of a line and its name. An entry has the label in the mark of its line.
    """
    from matplotlib.backends.backend_agg import RendererAgg

    if entries:
        legend = figure.legend(
            [handle for handle, _ in entries], [escaping.plot(name) for _, name in entries],
            loc="outside right center", fontsize=9, frameon=False,
            title=escaping.plot(title) or None, title_fontsize=8, handlelength=3.0, alignment="left",
            ncols=1 + (len(entries) - 1) // LEGEND_ROWS,
        )  # fmt: skip
        for (line, _), *parts in zip(entries, legend.legend_handles, legend.get_texts(), strict=True):
            for label in read_mark(line.get_gid())[:1]:
                for part in parts:
                    mark(part, label)
        renderer = RendererAgg(1, 1, figure.dpi)  # type: ignore[no-untyped-call]
        width = float(legend.get_window_extent(renderer).width) / figure.dpi
        figure.set_figwidth(figure.get_figwidth() + max(0.0, width - LEGEND_WIDTH))


def set_title(figure: Figure, *lines: str) -> None:
    """Write a title at the upper left; lines wrap before they reach the legend."""
    width = int((figure.get_figwidth() - LEGEND_WIDTH) * 13)  # characters: 13 per inch at this font size
    broken = [part for line in lines if line for part in textwrap.wrap(escaping.plot(line), max(40, width))]
    figure.suptitle("\n".join(broken), fontsize=10, x=0.012, ha="left")


def plot_files(stem: Path) -> list[Path]:
    """The files of a plot: its PDF and its PNG."""
    return [stem.with_name(f"{stem.name}.{ending}") for ending in ("pdf", "png")]


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png atomically.

    The PDF embeds TrueType fonts, as publishers require. Neither file carries a date or a software version: equal data
    give equal files.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    (pdf, png), dpi = plot_files(stem), figure.dpi
    no_facts = dict.fromkeys(("CreationDate", "Producer", "Creator"))
    with matplotlib.rc_context({"pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # labels in other scripts
        figure.dpi = DPI
        with whole_file(pdf) as partial:  # not by `savefig`, which draws twice
            FigureCanvasPdf(figure).print_pdf(partial, metadata=no_facts)  # type: ignore[no-untyped-call]
        figure.set_layout_engine("none")  # keep the layout of the PDF
        figure.dpi = DPI
        with whole_file(png) as partial:
            FigureCanvasAgg(figure).print_png(partial, metadata={"Software": None})  # type: ignore[no-untyped-call]
    figure.dpi = dpi
    return [pdf, png]
