"""Prune potential against the amount of retraining, for experiments whose variants change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiment import escaping
from experiment.errors import ConfigError
from experiment.report.mean_and_spread import Quantity, compressed, labels_of
from experiment.report.plots.figure import new_figure, place_legend, plain_ticks, set_title
from experiment.report.plots.label_styles import Naming
from experiment.report.plots.tradeoff import QUANTITY_LABELS
from experiment.report.prune_potential import DELTAS_RETRAINED, prune_potentials
from experiment.report.results_folder import tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

RETRAINING_KEYS = ("retraining.startEpoch", "retraining.numEpochs")


def is_retrain_sweep(results: DataFrame) -> bool:
    """Whether the variants change the amount of retraining, and at least two of them do."""
    variants = {str(variant) for variant in tidy(results)["variant"]}
    return sum(variant.startswith(RETRAINING_KEYS) for variant in variants) >= 2


def retrain_sweep(
    results: DataFrame,
    training_epochs: float,
    deltas: Sequence[float] = DELTAS_RETRAINED,
    quantity: Quantity = "parameters",
) -> DataFrame:
    """The prune potential of every label, amount of retraining and delta, per network and then averaged.

    Args:
        results: rows of results.csv of one sweep; variants that change anything else are left out.
        training_epochs: epochs of the original training (the parameter file's training.numEpochs), at least 1.

    Returns: the columns of `prune_potential(per="net")` and `retraining`: epochs of retraining (numEpochs - startEpoch)
        as a share of the training epochs. Sorted by label in grid order, delta, retraining.
    Raises: ConfigError: the variants do not change the amount of retraining, or training_epochs is below 1.
    """
    import pandas as pd

    if not is_retrain_sweep(results):
        raise ConfigError(
            "this experiment has no sweep over retraining. Expected customizations of retraining.startEpoch or "
            "retraining.numEpochs in its parameter file, at least two of them."
        )
    if not training_epochs >= 1:
        raise ConfigError(f"training_epochs: must be at least 1, shares of it are drawn. Got {training_epochs}.")
    frame = tidy(results)
    frame = frame[frame["variant"].str.startswith(RETRAINING_KEYS)]
    epochs = compressed(frame).groupby("variant")["epochs"].max()
    found = pd.concat(prune_potentials(frame, deltas, quantity, per="net"), ignore_index=True)
    found["retraining"] = found["variant"].map(epochs) / training_epochs
    order = {label: place for place, label in enumerate(labels_of(frame))}
    found = found[found["retraining"].notna()]
    return found.sort_values(
        ["label", "delta", "retraining"], key=lambda c: c.map(order) if c.name == "label" else c
    ).reset_index(drop=True)


def plot_retrain_sweep(
    results: DataFrame,
    training_epochs: float,
    *,
    quantity: Quantity = "parameters",
    deltas: Sequence[float] = DELTAS_RETRAINED,
    names: Mapping[str, str] | None = None,
    colors: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """Draw prune potential (y) against the amount of retraining (x, log axis with a place for none): a panel a delta.

    Arguments and errors are those of `retrain_sweep` and `plot_tradeoff`.
    """
    found = retrain_sweep(results, training_epochs, deltas, quantity)
    naming = Naming(names or {}, colors or {})
    looks = naming.looks(labels_of(results))
    columns = min(3, len(deltas))
    rows = -(-len(deltas) // columns)
    figure, panels = new_figure(columns, rows, height=2.9 * rows + 0.4)
    handles = {}
    amounts = sorted(set(100 * found["retraining"]))
    for axes, delta in zip(panels, deltas, strict=False):
        for label, curve in found[found["delta"] == delta].groupby("label", sort=False):
            look = looks[str(label)]
            x, y, std = 100 * curve["retraining"], 100 * curve["removed"], 100 * curve["removed_std"].fillna(0)
            (handles[str(label)],) = axes.plot(
                x, y, color=look.color, marker=look.marker, linestyle=look.dashes, linewidth=1.5, markersize=4.5,
                markerfacecolor=look.color if look.filled else "white", zorder=3, clip_on=False,
            )  # fmt: skip
            axes.fill_between(x, (y - std).clip(lower=0), (y + std).clip(upper=100), color=look.color, alpha=0.15, lw=0)
        axes.set_title(f"loss of accuracy ≤ {100 * delta:g} points", fontsize=9)
        axes.set_ylim(0, 100)
        _retraining_axis(axes, amounts)
    _share_labels(panels, len(deltas), columns, quantity)
    first = tidy(results).iloc[0]
    set_title(figure, f"{first['network']} on {first['dataset']}: prune potential against retraining", note)
    most = int(found["cells"].max())
    caption = f"mean, band: ± 1 std. dev.\nof {most} networks" if most > 1 else "1 network"
    place_legend(figure, [(handle, escaping.plot(naming.name(label))) for label, handle in handles.items()], caption)
    return figure


def _share_labels(panels: list[Axes], used: int, columns: int, quantity: str) -> None:
    """Axis labels at the left and at the lowest panel of every column alone; panels without a delta vanish."""
    for place, axes in enumerate(panels):
        if place >= used:
            axes.set_visible(False)
        if place % columns == 0:
            axes.set_ylabel(f"{QUANTITY_LABELS[quantity]} removed (%)")
        if place + columns >= used:
            axes.set_xlabel("Retraining (% of training epochs)")


def _retraining_axis(axes: Axes, amounts: Sequence[float]) -> None:
    """A log axis on which 0 stands one step left of the smallest positive amount."""
    from matplotlib.ticker import FixedLocator

    positive = [amount for amount in amounts if amount > 0]
    smallest = positive[0] if positive else 1.0
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.6)
    axes.set_xlim(-0.05 * smallest if amounts and amounts[0] <= 0 else 0.9 * smallest, max([smallest, *amounts]) * 1.1)
    ticks = list(amounts)
    while len(ticks) > 6:  # the first and the last stay
        ticks = [*ticks[:-1][::2], ticks[-1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    plain_ticks(axes, lambda value: f"{value:.0f}" if value >= 10 else f"{value:.2g}")
