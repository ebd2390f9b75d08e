"""The column `pareto` of results.csv: by which costs a network is on the Pareto front. Does not import torch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

COSTS = ("parameters", "flops", "bytes_sparse", "bytes_file", "seconds")
MEASURED = re.compile(r"latency_ms_b\d+")
SECONDS = ("seconds_compress", "seconds_retrain", "seconds_tune")
SETTING = ("dataset", "dataset_test", "network", "variant")
POINT = ("label", "keep_target")

Row = dict[str, Any]


def mark_pareto(rows: Sequence[Row]) -> None:
    """Set `pareto` of every row: the costs by which its method and keep ratio are on the front, separated by spaces.

    On the front no other network of the same setting is at least as good for less, or better for the same. Figures and
    costs are means over networks and repetitions. `seconds` is the time of compression, retraining and tuning; it does
    not apply to reference networks.
    """
    settings: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        row["pareto"] = ""
        if row.get("status") == "done" and row["method"] != "Fake":
            settings[tuple(row[c] for c in SETTING)][tuple(row[c] for c in POINT)].append(row)
    costs = [*COSTS, *(c for c in (rows[0] if rows else ()) if MEASURED.fullmatch(c))]
    for points in settings.values():
        for cost in costs:
            for own in _front(points.values(), cost):
                for row in own:
                    row["pareto"] = f"{row['pareto']} {cost}".strip()


def _front(points: Iterable[list[Row]], cost: str) -> list[list[Row]]:
    """The points on the front of one cost, of which each is the list of its rows."""
    found = []
    for rows in points:
        figure, spent = fmean(map(_figure, rows)), fmean(_cost(row, cost) for row in rows)
        if not (math.isnan(figure) or math.isnan(spent)):
            found.append((spent, -figure, rows))
    front, last = [], (math.inf, math.inf)
    for spent, worse, rows in sorted(found, key=lambda point: point[:2]):
        if worse < last[1] or (spent, worse) == last:  # equal networks do not beat each other
            front.append(rows)
            last = spent, worse
    return front


def _figure(row: Row) -> float:
    """The primary metric, turned so that higher is better."""
    return _number(row, row["primary"]) * (1 if row["better"] == "higher" else -1)


def _cost(row: Row, cost: str) -> float:
    if cost != "seconds":
        return _number(row, cost)
    spent = [_number(row, column) for column in SECONDS]
    return math.fsum(s for s in spent if not math.isnan(s)) if row["method"] != "Reference" else math.nan


def _number(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    return float(value) if isinstance(value, int | float) else math.nan
