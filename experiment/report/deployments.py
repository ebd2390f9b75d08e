"""The networks of an experiment as they can be deployed: every method, size and runtime, with its measured costs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from experiment.deploy.formats import FORMATS
from experiment.report.primary_metric import primary_metric
from experiment.report.results_table import tidy

if TYPE_CHECKING:
    from pandas import DataFrame

TORCH = "torch"
FIGURE, BYTES = "figure", "bytes"  # columns: the primary metric in the runtime, bytes of the file
COST = re.compile(r"(bytes|latency|memory)(?:_b(\d+))?")
KEYS = ["method", "label", "keep_target", "runtime"]


def runtimes_of(results: DataFrame) -> list[str]:
    """The formats that were exported, in the order of the registry."""
    return [name for name in FORMATS if f"{BYTES}_{name}" in results and results[f"{BYTES}_{name}"].notna().any()]


def deployments(results: DataFrame) -> DataFrame:
    """One row per method, keep ratio and runtime: means over networks and repetitions.

    Args:
        results: rows of results.csv, of one variant.
    Returns: method, label, keep_target, runtime, keep_parameters, the primary metric as `figure`, `bytes` of the file
        (of network.pt in torch), `latency_b<batch>` in milliseconds and, in torch, `memory_b<batch>` in bytes.
    """
    import pandas as pd

    frame = tidy(results)
    done = frame[frame["status"] == "done"]
    metric = primary_metric(done).name
    found = [_of_runtime(done, TORCH, metric, "bytes_file", r"(latency)_ms(_b\d+)|(memory)(_b\d+)")]
    for name in runtimes_of(done):
        found.append(_of_runtime(done, name, f"{metric}_{name}", f"{BYTES}_{name}", rf"(latency)_{name}(_b\d+)"))
    table = pd.concat(found, ignore_index=True)
    table = table[table[FIGURE].notna()]
    return table.groupby(KEYS, sort=False, dropna=False).mean(numeric_only=True).reset_index()


def _of_runtime(done: DataFrame, runtime: str, figure: str, size: str, costs: str) -> DataFrame:
    kept = done[[*KEYS[:-1], "keep_parameters"]].assign(runtime=runtime, figure=done[figure], bytes=done[size])
    for column in map(str, done):
        if match := re.fullmatch(costs, column):
            kept["".join(filter(None, match.groups()))] = done[column]
    return kept


def costs_of(table: DataFrame) -> list[str]:
    """The columns of measured costs in a table of deployments: bytes, then latencies and memory by rising batch."""
    found = [c for c in map(str, table) if COST.fullmatch(c) and table[c].notna().any()]
    return sorted(found, key=lambda c: (c.partition("_b")[0], int(c.partition("_b")[2] or 0)))


def cost_in_words(cost: str) -> str:
    """`file size`, `latency at batch size 1`, `peak memory in torch at batch size 64`."""
    match = COST.fullmatch(cost)
    assert match is not None
    name = {"bytes": "file size", "latency": "latency", "memory": "peak memory in torch"}[match[1]]
    return name + (f" at batch size {match[2]}" if match[2] else "")


def pareto_front(table: DataFrame, cost: str, better: str) -> DataFrame:
    """The rows that no other row beats in both the cost and the metric, by rising cost."""
    up = table[FIGURE] if better == "higher" else -table[FIGURE]
    ordered = table.assign(_up=up)[table[cost].notna()].sort_values([cost, "_up"], ascending=[True, False])
    best = ordered["_up"].cummax().shift(fill_value=-float("inf"))
    return ordered[ordered["_up"] > best].drop(columns="_up")
