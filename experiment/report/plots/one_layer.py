"""Accuracy, and the error of the weight, against the rank of the one layer that an experiment factors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.report.mean_and_spread import compressed
from experiment.report.plots.figure import new_figure, place_legend, plain_ticks, set_title
from experiment.report.plots.label_styles import REFERENCE_COLOR, Naming
from experiment.report.results_folder import REFERENCE, Source, read_cells
from experiment.report.words import numbers
from experiment.report.words.modes import variant_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLUMNS = ("layer", "rank", "relative_error", "relative_error_exact")
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
RANDOM, SCRATCH = "experiments.rewind=random", "trained from scratch"  # as factors, from random weights
MOST_TICKS = 9  # ranks that are named one by one
CELL = ["variant", "label", "net", "repetition", "keep_target"]


def ranks_of_one_layer(source: Source) -> DataFrame:
    """Cells with the rank of the layer that they factor; none unless all cells that factor one have the same one.

    Returns: CELL, `layer`, `rank`, `top1`, `error` (measured, relative, in the operator norm) and `bound` (what the
        method says of it), one row a cell.
    """
    cells = compressed(source.results)
    layers = read_cells(source.folder, cells, "layers.csv", COLUMNS)
    if not set(COLUMNS) <= set(layers):
        return layers[[]]
    factored = layers[layers["rank"].notna()]
    if factored["layer"].nunique() != 1 or factored["rank"].nunique() < 2:
        return factored[[]]
    found = factored.merge(cells[[*CELL, "top1"]], on=CELL).rename(
        columns={"relative_error_exact": "error", "relative_error": "bound"}
    )
    return found[[*CELL, "layer", "rank", "top1", "error", "bound"]]


def plot_one_layer(cells: DataFrame, reference: DataFrame, naming: Naming, title: str = "") -> Figure:
    """Two panels over the rank: top-1 accuracy, means over networks and repetitions, and the weight's relative error.

    Args:
        cells: as `ranks_of_one_layer` gives them; a curve a label and variant, errors once a label.
        reference: the rows of results.csv of the uncompressed networks.
    """
    figure, (left, right) = new_figure(2)
    several = cells["variant"].nunique() > 1
    curves = list(cells[["label", "variant"]].drop_duplicates().itertuples(index=False, name=None))
    named = {(label, variant): _name(label, variant, naming, several) for label, variant in curves}
    looks = naming.looks([label for label, _ in curves] if not several else list(named.values()))
    entries: list[tuple[Any, str]] = []
    for place, (label, variant) in enumerate(curves):
        extra = min(len(curves) - 1 - place, 4)  # larger, the more lie on top: where curves coincide, each is seen
        own = cells[(cells["label"] == label) & (cells["variant"] == variant)]
        look = looks[named[label, variant] if several else label]
        means = 100 * own.groupby("rank")["top1"].mean()
        (line,) = left.plot(
            means.index, means, color=look.color, marker=look.marker, linestyle=look.dashes,
            markerfacecolor=look.color if look.filled else "white",
            linewidth=1.3 + 1.1 * extra, markersize=4 + 2 * extra,
        )  # fmt: skip
        entries.append((line, escaping.plot(named[label, variant])))
        if variant == next(v for other, v in curves if other == label):
            entries += _draw_errors(right, own, line, escaping.plot(naming.name(label)))
    if len(reference):
        line = left.axhline(100 * float(reference["top1"].mean()), color=REFERENCE_COLOR, linestyle=(0, (6, 3)), lw=1)
        entries.append((line, "Reference (uncompressed)"))
    for axes in (left, right):
        _rank_axis(axes, cells)
    left.set_ylabel("Top-1 test accuracy (%)")
    right.set_ylabel("Relative error of the weight\n(operator norm)")
    _error_axis(right)
    set_title(figure, title)
    place_legend(figure, entries)
    return figure


def one_layer_seen(cells: DataFrame, reference: DataFrame, naming: Naming) -> str:
    """For every curve the smallest rank that loses at most half a point, and what the plot cannot say itself."""
    whole = float(reference["top1"].mean()) if len(reference) else math.nan
    several = cells["variant"].nunique() > 1
    found = []
    for (label, variant), own in cells.groupby(["label", "variant"], sort=False):
        means = own.groupby("rank")["top1"].mean().sort_index()
        enough = means[means >= whole - 0.005]
        told = f"{enough.index[0]:g} ({numbers.percent(enough.iloc[0], 2)} %)" if len(enough) else "none"
        found.append(f"{_name(str(label), str(variant), naming, several)} {told}")
    return (
        f"Top-1 test accuracy and relative error of the weight against the rank of {cells['layer'].iloc[0]}, the one "
        f"layer that is factored. The uncompressed networks have {numbers.percent(whole, 2)} %; the smallest rank "
        f"within half a point of that: {', '.join(found)}."
    )


def one_layer_reference(source: Source) -> DataFrame:
    """The uncompressed networks, each once, whichever variant names it."""
    rows = source.results[(source.results["method"] == REFERENCE) & (source.results["status"] == "done")]
    return rows.drop_duplicates("cell")


def _name(label: str, variant: str, naming: Naming, several: bool) -> str:
    words = SCRATCH if variant == RANDOM else variant_in_words(variant)
    return f"{naming.name(label)}, {words}" if several else naming.name(label)


def _draw_errors(axes: Axes, own: DataFrame, like: Any, name: str) -> list[tuple[Any, str]]:
    """The measured error as the label's curve, and dotted the bound of it where that is another number."""
    means = own.groupby("rank")[["error", "bound"]].mean()
    axes.plot(
        means.index, means["error"], color=like.get_color(), marker=like.get_marker(), linestyle=like.get_linestyle(),
        markerfacecolor=like.get_markerfacecolor(), linewidth=like.get_linewidth(), markersize=like.get_markersize(),
    )  # fmt: skip
    if ((means["bound"] - means["error"]).abs() <= 0.01 * means["error"]).all():
        return []
    (bound,) = axes.plot(means.index, means["bound"], color=like.get_color(), linestyle=(0, (1, 1.2)), linewidth=1.2)
    return [(bound, f"{name}: its bound of the error")]


def _error_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _rank_axis(axes: Axes, cells: DataFrame) -> None:
    from matplotlib.ticker import FixedLocator

    ranks = sorted(set(cells["rank"].astype(float)))
    low, high = ranks[0], ranks[-1]
    ticks = ranks if len(ranks) <= MOST_TICKS else [tick for tick in TICKS if 0.9 * low <= tick <= 1.1 * high]
    axes.set_xscale("log")
    axes.set_xlim(0.85 * low, 1.18 * high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    plain_ticks(axes)
    axes.set_xlabel(escaping.plot(f"Rank of {cells['layer'].iloc[0]}"))
