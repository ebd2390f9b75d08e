"""Prune potential: the largest share that a method removes while accuracy drops by at most delta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from experiment.errors import ConfigError
from experiment.report.mean_and_spread import keep_column, summarize
from experiment.report.results_table import GROUP, REFERENCE, SETTING, compressed, prune_only, tidy

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Per = Literal["net", "mean"]
DELTAS_RETRAINED = (0.0, 0.005, 0.01, 0.02, 0.03)
DELTAS_PRUNE_ONLY = (0.01, 0.05, 0.1, 0.2, 0.3)
ROUNDING = 1e-9  # far below one test image, far above the floating-point error of 0.9 - 0.895
AVERAGES = ["removed", "keep_parameters", "keep_flops", "top1", "top1_reference"]


def deltas_for(results: DataFrame) -> tuple[float, ...]:
    """The losses of accuracy that tables show: small ones after retraining, larger ones without it."""
    return DELTAS_PRUNE_ONLY if prune_only(results) else DELTAS_RETRAINED


def prune_potential(results: DataFrame, delta: float, quantity: str = "parameters", per: Per = "mean") -> DataFrame:
    """The largest achieved 1 - keep with top1_reference - top1 <= delta, for every label of every setting.

    The largest share counts even if a smaller one exceeds delta (accuracy need not be monotone). If no network stays
    within delta, the potential is 0: the reference network itself removes nothing and loses nothing.

    Args:
        results: rows of results.csv, of one or several experiments.
        delta: allowed loss of top1, as a fraction: 0.005 is half a percentage point.
        quantity: parameters, flops, flops_unmasked, or bytes (of the values, each in its own number of bits).
        per: `mean` averages accuracy and size over networks and repetitions at every keep ratio, then searches that
            one curve; `net` searches the curve of every network and repetition, then averages the potentials.

    Returns: one row per label: dataset, dataset_test, network, variant, method, label, quantity, delta, removed,
        keep_target (`mean` only), keep_parameters, keep_flops, top1, top1_reference, for each average c also c_std
        (NaN for one cell), cells (number of averaged cells), complete. A label without a finished cell has NaN and
        cells 0.
    Raises: ConfigError: delta is negative, or quantity or per is unknown.

    Example:
        >>> prune_potential(load_results("data/results/digits/prune/lenet5"), 0.01)[["label", "removed"]]

    Source: "Lost in Pruning", Liebenwein et al. 2021, https://arxiv.org/abs/2103.03014 (definition `net`).
    """
    return prune_potentials(results, [delta], quantity, per)[0]


def prune_potentials(
    results: DataFrame, deltas: Sequence[float], quantity: str = "parameters", per: Per = "mean"
) -> list[DataFrame]:
    """`prune_potential` for several deltas: the same rows in the same order."""
    if per not in ("net", "mean"):
        raise ConfigError(f"per: must be net or mean. Got {per!r}.")
    if wrong := [delta for delta in deltas if not delta >= 0]:
        raise ConfigError(f"delta: must be a fraction of at least 0, such as 0.005. Got {wrong[0]}.")
    column, frame = keep_column(quantity), tidy(results)
    labels = frame.loc[frame["method"] != REFERENCE, GROUP].drop_duplicates().reset_index(drop=True)
    points = _mean_points(results, column) if per == "mean" else _points(results, column)
    tables = []
    for delta in deltas:
        found = _best_points(points, GROUP, delta) if per == "mean" else _average_best(points, delta)
        table = labels.merge(found, on=GROUP, how="left")
        table["cells"] = table["cells"].astype(float).fillna(0).astype(int)
        table["complete"] = table["complete"].eq(True)
        table.insert(len(GROUP), "quantity", quantity)
        table.insert(len(GROUP) + 1, "delta", float(delta))
        tables.append(table)
    return tables


def _mean_points(results: DataFrame, column: str) -> DataFrame:
    points = summarize(results)
    points = points.assign(removed=1 - points[column], removed_std=points[f"{column}_std"])
    averages = [f"{name}{end}" for name in AVERAGES for end in ("", "_std")]
    return points[[*GROUP, "keep_target", *averages, "cells", "complete"]]


def _points(results: DataFrame, column: str) -> DataFrame:
    cells = compressed(results)
    cells = cells.assign(removed=1 - cells[column], cells=1, complete=True)
    return cells[[*GROUP, "net", "repetition", "keep_target", *AVERAGES, "cells", "complete"]]


def _average_best(points: DataFrame, delta: float) -> DataFrame:
    curve = [*GROUP, "net", "repetition"]
    best = _best_points(points, curve, delta)
    grouped = best.groupby(GROUP, sort=False)
    spreads = grouped[AVERAGES].std().add_suffix("_std")
    found = grouped[AVERAGES].mean().join(spreads).assign(cells=grouped.size(), keep_target=math.nan).reset_index()
    lengths = points.groupby(curve, sort=False).size().groupby(GROUP, sort=False)
    even = found.merge((lengths.max() == lengths.min()).rename("even").reset_index(), on=GROUP)["even"]
    return found.assign(complete=even & (found["cells"] == found.groupby(SETTING)["cells"].transform("max")))


def _best_points(points: DataFrame, curve: list[str], delta: float) -> DataFrame:
    """The point of every curve that removes most within delta, or the reference network's point."""
    import pandas as pd

    drop = points["top1_reference"] - points["top1"]
    allowed = points[(drop <= delta + ROUNDING) & (points["removed"] > 0)]
    best = allowed.sort_values(["removed", "top1"], ascending=False, kind="stable").drop_duplicates(curve)
    rest = points.drop_duplicates(curve).merge(best[curve], on=curve, how="left", indicator=True)
    rest = rest[rest["_merge"] == "left_only"].drop(columns="_merge")
    unpruned = {"removed": 0.0, "keep_parameters": 1.0, "keep_flops": 1.0, "keep_target": 1.0}
    spreads = {name: 0.0 for name in rest.columns if str(name).endswith("_std") and name != "top1_reference_std"}
    rest = rest.assign(**unpruned, **spreads, top1=rest["top1_reference"])
    if "top1_std" in rest:
        rest = rest.assign(top1_std=rest["top1_reference_std"])
    return pd.concat([part for part in (best, rest) if len(part)] or [points]).reset_index(drop=True)


def smallest_within(results: DataFrame, delta: float) -> Series | None:
    """The smallest compressed network that loses at most delta of top1; if there is none, the most accurate one.

    Returns: a row of results.csv, or None if no compressed network is finished. `Fake` does not count.
    """
    cells = compressed(results)
    cells = cells[(cells["method"] != "Fake") & cells["top1"].notna()]
    if cells.empty:
        return None
    good = cells[cells["top1_reference"] - cells["top1"] <= delta + ROUNDING]
    ordered = good.sort_values("keep_parameters") if len(good) else cells.sort_values("top1", ascending=False)
    return ordered.iloc[0]
