"""Prune potential and excess error on several test sets, and the response of networks to noise."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from experiment import escaping
from experiment.report.label_styles import LabelStyles
from experiment.report.plots.curves import draw_curve
from experiment.report.plots.figure import new_figure, place_legend, set_panel_title, set_title
from experiment.report.plots.marks import mark
from experiment.report.primary_metric import primary_metric
from experiment.report.results_table import compressed, labels_of, reference_rows
from experiment.report.words.points import cell_name
from experiment.report.words.test_sets import potential_per_test_set, shown_deltas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

NOISE = re.compile(r"noise_agreement_(.+)")
_CELL = ["label", "net", "repetition", "keep_target"]


def noise_levels(results: DataFrame) -> list[str]:
    """The levels of noise, as columns name them, at which any network was measured."""
    found = (NOISE.fullmatch(str(column)) for column in results if results[column].notna().any())
    return [match[1] for match in found if match is not None]


def plot_potential_on_test_sets(results: DataFrame, styles: LabelStyles, title: str = "") -> Figure:
    """Draw the prune potential at two allowed losses against the test set, a line per label.

    Args:
        results: rows of results.csv, as returned by `comparable_rows`.
    """
    deltas = shown_deltas(results)
    figure, panels = new_figure(len(deltas), height=4.6)
    looks, entries = styles.looks(labels_of(results)), {}
    for axes, delta in zip(panels, deltas, strict=True):
        table = potential_per_test_set(results, delta)
        for label in table:
            shares = 100 * table[label]
            words = [f"{styles.plain(str(label))}, {test_set}" for test_set in table.index]
            line = draw_curve(axes, list(range(len(shares))), shares, looks[str(label)])
            entries[label] = mark(line, str(label), words)
        names = [escaping.plot(str(name)) for name in table.index]
        axes.set_xticks(range(len(table)), names, rotation=45, ha="right")
        axes.set_ylim(-3, 103)
        set_panel_title(axes, primary_metric(results).limit(delta))
    panels[0].set_ylabel("Parameters removed (%)")
    place_legend(figure, [(line, styles.name(str(label))) for label, line in entries.items()])
    set_title(figure, title)
    return figure


def excess_errors(results: DataFrame) -> DataFrame:
    """The finished cells with `removed` and `excess`: how much more they lose on other test sets than the reference.

    The loss of a network is its figure on the first test set minus that on another one, averaged over the others; that
    of its reference network is subtracted: the difference in excess error of "Lost in Pruning".
    """
    cells = compressed(results)
    first = cells["dataset_test"].iloc[0]
    metric = primary_metric(cells)
    drop = metric.loss(cells[metric.reference], cells[metric.name])
    cells = cells.assign(drop=drop, removed=1 - cells["keep_parameters"])
    clean = cells.loc[cells["dataset_test"] == first, [*_CELL, "drop", "removed", "primary", "better", "unit"]]
    others = cells[cells["dataset_test"] != first].groupby(_CELL, dropna=False, sort=False)["drop"].mean().reset_index()
    joined: DataFrame = clean.merge(others, on=_CELL, suffixes=("_clean", ""))
    return joined.assign(excess=joined["drop"] - joined["drop_clean"])


def plot_excess_error(results: DataFrame, styles: LabelStyles, title: str = "") -> Figure:
    """Draw the difference in excess error against the share of parameters removed, a line per label."""
    figure, (axes,) = new_figure(1)
    cells = excess_errors(results)
    _draw(figure, [axes], cells, [100 * cells["excess"]], labels_of(results), styles)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_ylabel(f"Excess error on the other test sets\nbeyond the reference's ({primary_metric(cells).step})")
    set_title(figure, title)
    return figure


def plot_noise(results: DataFrame, level: str, styles: LabelStyles, title: str = "") -> Figure:
    """Draw agreement, softmax distance and excess error under noise against the share of parameters removed."""
    figure, panels = new_figure(3, panel_width=3.2)
    cells = compressed(results)
    cells = cells.assign(removed=1 - cells["keep_parameters"])
    own, metric = reference_rows(results)[f"noise_excess_error_{level}"].mean(), primary_metric(results)
    values = [
        100 * cells[f"noise_agreement_{level}"],
        cells[f"noise_distance_{level}"],
        metric.scale * (cells[f"noise_excess_error_{level}"] - own),
    ]
    _draw(figure, panels, cells, values, labels_of(results), styles)
    names = (
        "Predictions equal (%)",
        "Distance of softmax outputs",
        f"Excess error of {metric.title}\nbeyond the reference's",
    )
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name)
    set_title(figure, title)
    return figure


def _draw(
    figure: Figure, panels: list[Axes], cells: DataFrame, values: list[Series[float]], labels: list[str],
    styles: LabelStyles,
) -> None:  # fmt: skip
    """One line per label and panel: the mean over networks at every keep ratio."""
    looks, entries = styles.looks(labels), {}
    for axes, column in zip(panels, values, strict=True):
        means = cells.assign(value=column).groupby(["label", "keep_target"], dropna=False, sort=False)
        points = means[["removed", "value"]].mean().reset_index().sort_values("removed")
        for label in labels:
            own = points[(points["label"] == label) & points["value"].notna()]
            words = [cell_name(styles.plain(label), keep) for keep in own["keep_target"]]
            entries[label] = mark(draw_curve(axes, 100 * own["removed"], own["value"], looks[label]), label, words)
        axes.set_xlabel("Parameters removed (%)")
    place_legend(figure, [(line, styles.name(label)) for label, line in entries.items()])
