"""What the plots of effective ranks show, in a sentence each, with the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiment.report.plots.label_styles import Naming
from experiment.report.plots.ranks import final, mean_shares
from experiment.report.words import numbers

if TYPE_CHECKING:
    from pandas import DataFrame

WHAT = "Effective rank (Roy and Vetterli 2007), in percent of the layer's full rank"


def training_seen(ranks: DataFrame) -> str:
    """From where to where the reference networks' effective rank went, and the layer that moved most."""
    by_epoch = mean_shares(ranks, ["epoch"]).sort_index()
    by_layer = ranks.groupby(["layer", "epoch"], sort=False)["share"].mean().unstack("epoch")
    first, last = by_epoch.index[0], by_epoch.index[-1]
    change = (by_layer[last] - by_layer[first]).dropna()
    most = change.abs().idxmax()
    return (
        f"{WHAT}, of the reference networks after every epoch of training: on average over layers it goes from "
        f"{_percent(by_epoch[first])} to {_percent(by_epoch[last])}; the layer that changes most is {most}, from "
        f"{_percent(by_layer.loc[most, first])} to {_percent(by_layer.loc[most, last])}."
    )


def keeps_seen(ranks: DataFrame, reference: DataFrame, naming: Naming) -> str:
    """Every label's mean at its smallest keep ratio, beside the reference networks'."""
    means = mean_shares(final(ranks), ["label", "keep_target"])
    found = []
    for label in dict.fromkeys(ranks["label"]):
        curve = means[label].sort_index()
        found.append(f"{naming.plain(label)} {_percent(curve.iloc[0])} at keep ratio {numbers.keep(curve.index[0])}")
    text = f"{WHAT}, mean over layers, of the finished networks against the keep ratio: {', '.join(found)}"
    if reference.empty:
        return f"{text}."
    return f"{text}; the uncompressed networks have {_percent(mean_shares(final(reference), ['label']).iloc[0])}."


def retraining_seen(ranks: DataFrame, naming: Naming) -> str:
    """By how much retraining changes every label's mean, over all keep ratios."""
    means = mean_shares(ranks, ["label", "epoch"])
    found = []
    for label in dict.fromkeys(ranks["label"]):
        curve = means[label].sort_index()
        found.append(f"{naming.plain(label)} {numbers.change(float(curve.iloc[-1] - curve.iloc[0]), 1)}")
    return (
        f"{WHAT}, mean over layers, over the epochs of retraining; over all keep ratios it changes by "
        f"{', '.join(found)} percentage points."
    )


def _percent(share: float) -> str:
    return f"{numbers.percent(float(share))} %"
