"""How many dimensions layers use: effective rank over epochs, and against the keep ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.report.plots.figure import new_figure, place_legend, plain_ticks, set_title
from experiment.report.plots.label_styles import COLORS, REFERENCE_COLOR, Naming, line_of
from experiment.report.words import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

RANK_COLUMNS = ("epoch", "layer", "effective_rank", "full_rank")
CELL = ["label", "net", "repetition", "keep_target"]
MOST_LINES = 12  # layers that still get a line of their own
TICKS = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)


def shares_of(measured: Sequence[DataFrame], ranks: DataFrame) -> DataFrame:
    """Ranks with a column `share`: effective rank over the full rank that the layer has where it is largest.

    So a layer that lost filters is compared with the whole one. Without ranks an empty frame of the same columns.

    Args:
        measured: all frames that full ranks are taken from.
    """
    import pandas as pd

    columns = [*CELL, *RANK_COLUMNS]
    if not set(RANK_COLUMNS) <= set(ranks):
        return pd.DataFrame(columns=[*columns, "share"])
    full = pd.concat([frame[["layer", "full_rank"]] for frame in measured]).groupby("layer")["full_rank"].max()
    return ranks.assign(share=ranks["effective_rank"] / ranks["layer"].map(full)).dropna(subset=["share"])


def mean_shares(ranks: DataFrame, by: Sequence[str]) -> Series[float]:
    """The mean over layers, then over networks and repetitions, for every combination of `by`."""
    of_networks = ranks.groupby([*dict.fromkeys([*CELL, *by])], dropna=False, sort=False)["share"].mean()
    means: Series[float] = of_networks.groupby(level=list(by), dropna=False).mean()
    return means


def final(ranks: DataFrame) -> DataFrame:
    """The rows of every network's last epoch."""
    return ranks[ranks["epoch"] == ranks.groupby(CELL, dropna=False)["epoch"].transform("max")]


def plot_rank_training(ranks: DataFrame, title: str = "") -> Figure:
    """Effective rank over full rank after every epoch of the reference networks: a line a layer, and their mean.

    Args:
        ranks: as `shares_of` gives it, epoch 0 being the state before the first one; means over networks are drawn.
    """
    figure, (axes,) = new_figure(1)
    figure.set_figwidth(6.4)
    entries: list[tuple[Any, str]] = []
    layers = list(dict.fromkeys(ranks["layer"].astype(str)))
    by_layer = ranks.groupby([ranks["layer"].astype(str), "epoch"])["share"].mean().unstack(0)[layers] * 100
    if len(layers) <= MOST_LINES:
        for place, name in enumerate(layers):
            color, dashes = COLORS[place % len(COLORS)], "-" if place < len(COLORS) else (0, (4, 1.5))
            (line,) = axes.plot(by_layer.index, by_layer[name], color=color, linestyle=dashes, linewidth=1.4)
            entries.append((line, escaping.plot(name)))
    else:
        low, high = by_layer.min(axis=1), by_layer.max(axis=1)
        band = axes.fill_between(by_layer.index, low, high, color=COLORS[0], alpha=0.18, linewidth=0)
        entries.append((band, f"smallest to largest\nof {len(layers)} layers"))
    mean = by_layer.mean(axis=1)
    (line,) = axes.plot(mean.index, mean, color=REFERENCE_COLOR, linewidth=2.2, linestyle=(0, (6, 2)))
    _label_epochs(axes, "Effective rank (% of full rank)")
    nets = ranks["net"].nunique()
    place_legend(
        figure, [(line, "mean over layers"), *entries], "1 network" if nets == 1 else f"mean of {nets} networks"
    )
    set_title(figure, title)
    return figure


def plot_rank_keeps(ranks: DataFrame, reference: DataFrame, naming: Naming, title: str = "") -> Figure:
    """Mean effective rank over full rank of finished networks against the keep ratio: a line a label.

    Args:
        ranks, reference: of compressed and of reference networks, as `shares_of` gives them.
    """
    from matplotlib.ticker import FixedLocator

    figure, (axes,) = new_figure(1)
    figure.set_figwidth(6.4)
    entries: list[tuple[Any, str]] = []
    labels = list(dict.fromkeys(ranks["label"]))
    looks, means = naming.looks(labels), mean_shares(final(ranks), ["label", "keep_target"])
    for label in labels:
        curve, look = 100 * means[label].sort_index(ascending=False), looks[label]
        (line,) = axes.plot(
            100 * curve.index, curve, color=look.color, marker=look.marker, linestyle=line_of(look, len(curve)),
            linewidth=1.5, markersize=4.5, markerfacecolor=look.color if look.filled else "white",
        )  # fmt: skip
        entries.append((line, escaping.plot(naming.name(label))))
    if len(reference):
        whole = 100 * float(mean_shares(final(reference), ["label"]).iloc[0])
        line = axes.axhline(whole, color=REFERENCE_COLOR, linestyle=(0, (6, 3)), linewidth=1, zorder=1)
        entries.append((line, "Reference (uncompressed)"))
    axes.set_xscale("log")
    low = 100 * float(ranks["keep_target"].min())
    axes.set_xlim(105, 0.9 * low if math.isfinite(low) else 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if not tick < 0.9 * low]))
    plain_ticks(axes)
    axes.set_xlabel("Keep ratio (%), logarithmic")
    axes.set_ylabel("Effective rank (% of full rank),\nmean over layers")
    place_legend(figure, entries)
    set_title(figure, title)
    return figure


def plot_rank_curves(ranks: DataFrame, naming: Naming, title: str = "") -> Figure:
    """Mean effective rank over full rank over epochs of retraining: a panel a label, a line a keep ratio.

    Args:
        ranks: of compressed networks at the keep ratios to draw, as `shares_of` gives it.
    """
    import matplotlib

    labels = list(dict.fromkeys(ranks["label"]))
    columns = min(4, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure, panels = new_figure(columns, rows, height=2.1 * rows + 0.9)
    figure.set_figwidth(2.6 * columns + 1.9)
    keeps = sorted(set(ranks["keep_target"]), reverse=True)
    palette = matplotlib.colormaps["viridis"]
    shades = {keep: palette(0.9 * place / max(1, len(keeps) - 1)) for place, keep in enumerate(keeps)}
    means = 100 * mean_shares(ranks, ["label", "keep_target", "epoch"])
    handles: dict[float, Any] = {}
    for axes, label in zip(panels, labels, strict=False):
        for keep in keeps:
            if (label, keep) in means.index:
                curve = means[label, keep]
                (handles[keep],) = axes.plot(curve.index, curve, color=shades[keep], linewidth=1.3, marker=".")
        axes.set_title(escaping.plot(naming.name(label)), fontsize=9)
        _label_epochs(axes, "")
    top = max(axes.get_ylim()[1] for axes in panels[: len(labels)])
    for axes in panels:
        axes.set_ylim(0, top)
        axes.set_xlabel("")
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    figure.supylabel("Effective rank (% of full rank)", fontsize=10)
    figure.supxlabel("Epochs of retraining", fontsize=10)
    place_legend(figure, [(handles[k], numbers.keep(k)) for k in keeps if k in handles], "keep ratio")
    set_title(figure, title)
    return figure


def _label_epochs(axes: Axes, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Epochs")
    axes.set_ylabel(ylabel)
