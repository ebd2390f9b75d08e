"""Prune potential: the largest share that a method removes while the primary metric worsens by at most delta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from experiment.errors import ConfigError
from experiment.report.mean_and_spread import keep_column, summarize
from experiment.report.primary_metric import ReportedMetric, by_metric
from experiment.report.results_table import GROUP, REFERENCE, SETTING, compressed, prune_only, tidy

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Per = Literal["net", "mean"]
DELTAS_RETRAINED = (0.0, 0.005, 0.01, 0.02, 0.03)
DELTAS_PRUNE_ONLY = (0.01, 0.05, 0.1, 0.2, 0.3)
ROUNDING = 1e-9  # far below one test image, far above the floating-point error of 0.9 - 0.895


def deltas_for(results: DataFrame) -> tuple[float, ...]:
    """The losses of accuracy that tables show: small ones after retraining, larger ones without it."""
    return DELTAS_PRUNE_ONLY if prune_only(results) else DELTAS_RETRAINED


def deployed_loss(results: DataFrame) -> float:
    """The loss that reports allow a network to deploy: 1 point after retraining, 10 without it."""
    return deltas_for(results)[2]


def prune_potential(results: DataFrame, delta: float, quantity: str = "parameters", per: Per = "mean") -> DataFrame:
    """The largest achieved 1 - keep with top1_reference - top1 <= delta, for every label of every setting.

    The largest share counts even if a smaller one exceeds delta (accuracy need not be monotone). If no network stays
    within delta, the potential is 0: the reference network itself removes nothing and loses nothing. Of other tasks,
    the primary metric takes the place of top1; a metric with lower figures for better networks may rise by delta.

    Args:
        results: rows of results.csv, of one or several experiments.
        delta: allowed loss of top1, as a fraction: 0.005 is half a percentage point. Of metrics that are no fractions,
            such as perplexity: as a share of the reference network's figure.
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
    import pandas as pd

    if per not in ("net", "mean"):
        raise ConfigError(f"per: must be net or mean. Got {per!r}.")
    if wrong := [delta for delta in deltas if not delta >= 0]:
        raise ConfigError(f"delta: must be a fraction of at least 0, such as 0.005. Got {wrong[0]}.")
    column, frame = keep_column(quantity), tidy(results)
    parts = [_of_metric(metric, rows, deltas, column, per) for metric, rows in by_metric(frame)]
    tables = []
    for delta, *own in zip(deltas, *parts, strict=True):
        table = pd.concat(own, ignore_index=True)
        table["cells"] = table["cells"].astype(float).fillna(0).astype(int)
        table["complete"] = table["complete"].eq(True)
        table.insert(len(GROUP), "quantity", quantity)
        table.insert(len(GROUP) + 1, "delta", float(delta))
        tables.append(table)
    return tables


def _of_metric(
    metric: ReportedMetric, frame: DataFrame, deltas: Sequence[float], column: str, per: Per
) -> list[DataFrame]:
    """A table per delta."""
    labels = frame.loc[frame["method"] != REFERENCE, GROUP].drop_duplicates().reset_index(drop=True)
    points = _mean_points(frame, metric, column) if per == "mean" else _points(frame, metric, column)
    curve = GROUP if per == "mean" else [*GROUP, "net", "repetition"]
    candidates = _candidates(points, metric, curve)
    loss: Series[float] = metric.loss(candidates[metric.reference], candidates[metric.name])
    best = [candidates[~(loss > delta + ROUNDING)].drop_duplicates(curve) for delta in deltas]
    found = best if per == "mean" else [_averaged(points, each, metric, curve) for each in best]
    return [labels.merge(each, on=GROUP, how="left") for each in found]


def _averages(metric: ReportedMetric) -> list[str]:
    return ["removed", "keep_parameters", "keep_flops", metric.name, metric.reference]


def _mean_points(frame: DataFrame, metric: ReportedMetric, column: str) -> DataFrame:
    points = summarize(frame)
    points = points.assign(removed=1 - points[column], removed_std=points[f"{column}_std"])
    averages = [f"{name}{end}" for name in _averages(metric) for end in ("", "_std")]
    return points[[*GROUP, "keep_target", *averages, "cells", "complete"]]


def _points(frame: DataFrame, metric: ReportedMetric, column: str) -> DataFrame:
    cells = compressed(frame)
    cells = cells.assign(removed=1 - cells[column], cells=1, complete=True)
    return cells[[*GROUP, "net", "repetition", "keep_target", *_averages(metric), "cells", "complete"]]


def _averaged(points: DataFrame, best: DataFrame, metric: ReportedMetric, curve: list[str]) -> DataFrame:
    averages = _averages(metric)
    grouped = best.groupby(GROUP, sort=False)
    spreads = grouped[averages].std().add_suffix("_std")
    found = grouped[averages].mean().join(spreads).assign(cells=grouped.size(), keep_target=math.nan).reset_index()
    lengths = points.groupby(curve, sort=False).size().groupby(GROUP, sort=False)
    even = found.merge((lengths.max() == lengths.min()).rename("even").reset_index(), on=GROUP)["even"]
    return found.assign(complete=even & (found["cells"] == found.groupby(SETTING)["cells"].transform("max")))


def _candidates(points: DataFrame, metric: ReportedMetric, curve: list[str]) -> DataFrame:
    """The points of all curves, those that remove most first, then the reference network of each, without any loss."""
    import pandas as pd

    loss: Series[float] = metric.loss(points[metric.reference], points[metric.name])
    removing = points[loss.notna() & (points["removed"] > 0)]
    removing = removing.sort_values(["removed", metric.name], ascending=[False, not metric.falls], kind="stable")
    rest = points.drop_duplicates(curve)
    unpruned = {"removed": 0.0, "keep_parameters": 1.0, "keep_flops": 1.0, "keep_target": 1.0}
    spreads = {name: 0.0 for name in rest.columns if str(name).endswith("_std") and name != f"{metric.reference}_std"}
    rest = rest.assign(**unpruned, **spreads, **{metric.name: rest[metric.reference]})
    if f"{metric.name}_std" in rest:
        rest = rest.assign(**{f"{metric.name}_std": rest[f"{metric.reference}_std"]})
    return pd.concat([part for part in (removing, rest) if len(part)] or [points], ignore_index=True)


def smallest_within(results: DataFrame, delta: float) -> Series | None:
    """The compressed network with the smallest file that loses at most delta of top1, else the most accurate one.

    Of other tasks, the primary metric takes the place of top1; of several primary metrics, the first one counts.

    Returns: a row of results.csv, or None if no compressed network is finished. `Fake` does not count.
    """
    metric, cells = next(by_metric(compressed(results)))
    cells = cells[(cells["method"] != "Fake") & cells[metric.name].notna()]
    if cells.empty:
        return None
    loss: Series[float] = metric.loss(cells[metric.reference], cells[metric.name])
    good = cells[loss <= delta + ROUNDING]
    if good.empty:
        return cells.sort_values(metric.name, ascending=not metric.falls).iloc[0]
    return good.sort_values(["bytes_file", "keep_parameters"], kind="stable").iloc[0]
