"""Effective rank of finished networks against the keep ratio, from ranks.csv."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiment.report.label_styles import LabelStyles
from experiment.report.plots.curves import REFERENCE_NAME, draw_curve, draw_reference, log_ticks, plain_ticks
from experiment.report.plots.figure import new_figure, place_legend, set_title
from experiment.report.plots.marks import mark
from experiment.report.results_table import REFERENCE
from experiment.report.words.points import cell_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

RANK_COLUMNS = ("epoch", "layer", "effective_rank", "full_rank")
CELL = ["label", "net", "repetition", "keep_target"]


def with_shares(ranks: DataFrame) -> DataFrame:
    """Ranks with a column `share`: effective rank divided by the largest full rank of the layer in any network.

    So a layer that lost filters is compared with the whole layer.

    Args:
        ranks: rows of ranks.csv, as returned by `read_cells`.
    """
    full = ranks.groupby("layer")["full_rank"].transform("max")
    return ranks.assign(share=ranks["effective_rank"] / full).dropna(subset=["share"])


def final_shares(ranks: DataFrame) -> Series[float]:
    """Mean share over layers, then over networks, after the last epoch: one value per (label, keep_target)."""
    last = ranks[ranks["epoch"] == ranks.groupby(CELL, dropna=False)["epoch"].transform("max")]
    means: Series[float] = last.groupby(CELL, dropna=False, sort=False)["share"].mean()
    return means.groupby(level=["label", "keep_target"], dropna=False, sort=False).mean()


def plot_effective_rank(ranks: DataFrame, styles: LabelStyles, title: str = "") -> Figure:
    """Draw one curve per label: effective rank as a share of the full rank, mean over layers and networks.

    Args:
        ranks: rows of ranks.csv of compressed and reference networks, as returned by `with_shares`.
    """
    figure, (axes,) = new_figure(1)
    means, entries = 100 * final_shares(ranks[ranks["keep_target"].notna()]), []
    labels = [label for label in dict.fromkeys(ranks["label"]) if label != REFERENCE and label in means]
    looks = styles.looks(labels)
    for label in labels:
        curve = means[label].sort_index(ascending=False)
        words = [cell_name(styles.plain(label), keep) for keep in curve.index]
        line = mark(draw_curve(axes, 100 * curve.index, curve, looks[label]), label, words)
        entries.append((line, styles.name(label)))
    if REFERENCE in means:
        entries.append((draw_reference(axes, float(means[[REFERENCE]].iloc[0])), REFERENCE_NAME))
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    log_ticks(axes.xaxis)
    plain_ticks(axes)
    axes.set_xlabel("Keep ratio (%), logarithmic")
    axes.set_ylabel("Effective rank (% of full rank),\nmean over layers")
    place_legend(figure, entries)
    set_title(figure, title)
    return figure
