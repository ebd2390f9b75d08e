"""Prune potential against the amount of retraining, for experiments whose variants change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiment.errors import ConfigError
from experiment.report.label_styles import LabelStyles
from experiment.report.mean_and_spread import Quantity
from experiment.report.plots.curves import draw_curve, plain_ticks
from experiment.report.plots.figure import new_figure, place_legend, set_panel_title, set_title
from experiment.report.plots.marks import mark
from experiment.report.primary_metric import primary_metric
from experiment.report.prune_potential import DELTAS_RETRAINED, prune_potentials
from experiment.report.results_table import compressed, labels_of, tidy, variants_of
from experiment.report.words.titles import QUANTITIES, capitalized, network_on_dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

RETRAINING_KEYS = ("retraining.startEpoch", "retraining.numEpochs")
MOST_TICKS = 6


def is_retrain_sweep(results: DataFrame) -> bool:
    """Whether at least two variants change the amount of retraining."""
    return sum(variant.startswith(RETRAINING_KEYS) for variant in variants_of(results)) >= 2


def retrain_sweep(
    results: DataFrame, training_epochs: float, deltas: Sequence[float] = DELTAS_RETRAINED,
    quantity: Quantity = "parameters",
) -> DataFrame:  # fmt: skip
    """The prune potential for every label, amount of retraining and delta; computed per network, then averaged.

    Args:
        results: rows of results.csv of one sweep. Variants that change anything else are ignored.
        training_epochs: epochs of the original training (training.numEpochs), at least 1.
        deltas: allowed losses of the primary metric (top1), as fractions.
        quantity: what is removed, as in `prune_potential`.

    Returns: the columns of `prune_potential(per="net")`, and `retraining`: epochs of retraining divided by
        training_epochs. Sorted by label in grid order, delta, retraining.
    Raises: ConfigError: the variants do not change the amount of retraining, or training_epochs is below 1.
    """
    import pandas as pd

    if not is_retrain_sweep(results):
        raise ConfigError(
            "this experiment does not sweep over retraining. Expected at least two customizations of "
            "retraining.startEpoch or retraining.numEpochs in its parameter file."
        )
    if not training_epochs >= 1:
        raise ConfigError(f"training_epochs: must be at least 1. Got {training_epochs}.")
    frame = tidy(results)
    frame = frame[frame["variant"].str.startswith(RETRAINING_KEYS)]
    epochs = compressed(frame).groupby("variant")["epochs"].max()
    found = pd.concat(prune_potentials(frame, deltas, quantity, per="net"), ignore_index=True)
    found["retraining"] = found["variant"].map(epochs) / training_epochs
    found["label"] = pd.Categorical(found["label"], labels_of(frame))
    found = found[found["retraining"].notna()].sort_values(["label", "delta", "retraining"])
    return found.astype({"label": object}).reset_index(drop=True)


def plot_retrain_sweep(
    results: DataFrame, training_epochs: float, *, deltas: Sequence[float] = DELTAS_RETRAINED,
    quantity: Quantity = "parameters", styles: LabelStyles | None = None,
) -> Figure:  # fmt: skip
    """Draw prune potential against the amount of retraining: one panel per delta, one curve per label.

    Args:
        results, training_epochs, deltas, quantity: as in `retrain_sweep`.
        styles: names and colors of labels.

    Raises: ConfigError: as `retrain_sweep`.
    """
    found, styles = retrain_sweep(results, training_epochs, deltas, quantity), styles or LabelStyles()
    looks, metric = styles.looks(labels_of(results)), primary_metric(tidy(results))
    loss = "loss of accuracy" if metric.name == "top1" else metric.loss_title
    columns = min(3, len(deltas))
    rows = -(-len(deltas) // columns)
    figure, panels = new_figure(columns, rows, height=2.9 * rows + 0.4)
    amounts, lines = sorted(set(100 * found["retraining"])), {}
    for axes, delta in zip(panels, deltas, strict=False):
        for label, curve in found[found["delta"] == delta].groupby("label", sort=False):
            look, x = looks[str(label)], 100 * curve["retraining"]
            y, std = 100 * curve["removed"], 100 * curve["removed_std"].fillna(0)
            facts = zip(std, curve["cells"], strict=True)
            words = [
                f"{styles.plain(str(label))}\nStandard deviation: {s:.2g}\nNetworks: {cells}" for s, cells in facts
            ]
            lines[str(label)] = mark(draw_curve(axes, x, y, look, clip_on=False), str(label), words)
            low, high = (y - std).clip(lower=0), (y + std).clip(upper=100)
            mark(axes.fill_between(x, low, high, color=look.color, alpha=0.15, lw=0), str(label))
        set_panel_title(axes, f"{loss} ≤ {100 * delta:g} {metric.step}")
        axes.set_ylim(0, 100)
        _retraining_axis(axes, amounts)
    for place, axes in enumerate(panels):
        axes.set_visible(place < len(deltas))
        if place % columns == 0:
            axes.set_ylabel(f"{capitalized(QUANTITIES[quantity])} removed (%)")
        if place + columns >= len(deltas):
            axes.set_xlabel("Retraining (% of training epochs)")
    set_title(figure, f"{network_on_dataset(results)}: prune potential against retraining")
    most = int(found["cells"].max())
    averaged = f"mean, band: ± 1 std. dev.\nof {most} networks" if most > 1 else "1 network"
    place_legend(figure, [(line, styles.name(label)) for label, line in lines.items()], averaged)
    return figure


def _retraining_axis(axes: Axes, amounts: Sequence[float]) -> None:
    """A logarithmic axis on which 0 is one step left of the smallest positive amount."""
    from matplotlib.ticker import FixedLocator

    positive = [amount for amount in amounts if amount > 0]
    smallest = positive[0] if positive else 1.0
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.6)
    axes.set_xlim(-0.05 * smallest if amounts and amounts[0] <= 0 else 0.9 * smallest, max([smallest, *amounts]) * 1.1)
    ticks = list(amounts)
    while len(ticks) > MOST_TICKS:  # keeps the first and the last
        ticks = [*ticks[:-1][::2], ticks[-1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    plain_ticks(axes, lambda value: f"{value:.0f}" if value >= 10 else f"{value:.2g}")
