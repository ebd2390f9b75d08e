"""How many dimensions layers use in training, variant by variant: what a setting of the training does to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from experiment import escaping
from experiment.report.plots.figure import new_figure, place_legend, set_title
from experiment.report.plots.label_styles import COLORS
from experiment.report.plots.ranks import RANK_COLUMNS, shares_of
from experiment.report.results_folder import REFERENCE, Source, read_cells
from experiment.report.words import numbers
from experiment.report.words.modes import variant_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MOST_PANELS, MOST_VARIANTS = 6, len(COLORS)


def ranks_of_variants(source: Source) -> DataFrame:
    """Ranks of the reference networks of several variants, as `shares_of` gives them; empty where there is no plot.

    That is: variants share their reference networks, there are more of them or of layers than eyes can tell apart, or
    nobody measured ranks over epochs.
    """
    rows = source.results[(source.results["method"] == REFERENCE) & (source.results["status"] == "done")]
    ranks = read_cells(source.folder, rows, "ranks.csv", RANK_COLUMNS)
    shares = shares_of([ranks] if len(ranks) else [], ranks) if set(RANK_COLUMNS) <= set(ranks) else ranks[[]]
    if shares.empty or not 1 < shares["variant"].nunique() <= MOST_VARIANTS or shares["epoch"].nunique() < 2:
        return shares[:0]
    own = rows["cell"].nunique() == len(rows) and shares["layer"].nunique() <= MOST_PANELS
    return shares if own else shares[:0]


def plot_rank_variants(ranks: DataFrame, title: str = "") -> Figure:
    """Effective rank over full rank after every epoch: a panel a layer, a line a variant, means over networks.

    Args:
        ranks: as `ranks_of_variants` gives it.
    """
    from matplotlib.ticker import MaxNLocator

    layers = list(dict.fromkeys(ranks["layer"].astype(str)))
    columns = min(3, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure, panels = new_figure(columns, rows, height=2.3 * rows + 0.8)
    figure.set_figwidth(2.8 * columns + 1.9)
    entries: list[tuple[Any, str]] = []
    for axes, layer in zip(panels, layers, strict=False):
        own = ranks[ranks["layer"].astype(str) == layer]
        for place, variant in enumerate(dict.fromkeys(ranks["variant"])):
            curve = 100 * own[own["variant"] == variant].groupby("epoch")["share"].mean()
            (line,) = axes.plot(curve.index, curve, color=COLORS[place], marker=".", linewidth=1.4)
            if layer == layers[0]:
                entries.append((line, escaping.plot(variant_in_words(str(variant)))))
        axes.set_title(escaping.plot(layer), fontsize=9)
        axes.set_ylim(0, 1.03 * 100 * float(ranks["share"].max()))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    figure.supylabel("Effective rank (% of full rank)", fontsize=10)
    figure.supxlabel("Epochs", fontsize=10)
    set_title(figure, title)
    place_legend(figure, entries)
    return figure


def variants_seen(ranks: DataFrame) -> str:
    """Every variant's mean over layers at the end, and that of the layer in which they differ most."""
    last = ranks[ranks["epoch"] == ranks.groupby("variant")["epoch"].transform("max")]
    by_layer = last.groupby(["layer", "variant"], sort=False)["share"].mean().unstack("variant")
    most = str((by_layer.max(axis=1) - by_layer.min(axis=1)).idxmax())
    found = []
    for variant in dict.fromkeys(ranks["variant"]):
        own = {str(layer): float(share) for layer, share in by_layer[variant].items()}
        mean = sum(own.values()) / len(own)
        words = variant_in_words(str(variant))
        found.append(f"{words} {numbers.percent(mean)} % ({numbers.percent(own[most])} %)")
    return (
        f"Effective rank (Roy and Vetterli 2007), in percent of the layer's full rank, of the reference networks after "
        f"every epoch of training. At the end, mean over layers (and {most}): {', '.join(found)}."
    )
