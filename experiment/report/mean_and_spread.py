"""Mean and spread of results over networks and repetitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from experiment.errors import ConfigError
from experiment.report.primary_metric import AGREEMENT, by_metric
from experiment.report.results_table import GROUP, SETTING, compressed, metrics_of, tidy

if TYPE_CHECKING:
    from pandas import DataFrame

Quantity = Literal["parameters", "flops", "flops_unmasked", "bytes"]
QUANTITIES = get_args(Quantity)

AVERAGED = [
    "keep_parameters", "keep_flops", "keep_flops_unmasked", "keep_bytes", "parameters", "flops", "loss",
    "epochs", "bytes_dense", "bytes_values", "bytes_sparse", "bytes_file",
]  # fmt: skip


def summarize(results: DataFrame) -> DataFrame:
    """Average the finished compressed networks: one row per (setting, label, keep_target), in grid order.

    Returns: the columns of GROUP, `keep_target`, `cells` (number of averaged cells), `nets` (number of networks),
        `networks` (their names), `complete` (False if other rows of the label average more cells, or other labels more
        networks), and for every averaged column c: c and c_std (sample standard deviation, NaN for one cell).
    """
    import pandas as pd

    keys = [*GROUP, "keep_target"]
    cells = compressed(results)
    averaged = _averaged(results)
    if cells.empty:
        extra = [f"{column}{end}" for column in averaged for end in ("", "_std")]
        return pd.DataFrame(columns=[*keys, "cells", "nets", "networks", "complete", *extra])
    grouped = cells.groupby(keys, sort=False, dropna=False)
    parts: list[Any] = [grouped.size().rename("cells"), grouped["net"].nunique().rename("nets")]
    parts += [grouped[averaged].mean(), grouped[averaged].std().add_suffix("_std")]
    summary: DataFrame = pd.concat(parts, axis=1).reset_index()
    averaged_nets: list[set[float]] = [set() for _ in range(len(summary))]
    for place, net in zip(grouped.ngroup(), cells["net"], strict=True):  # pandas takes long to join text per group
        averaged_nets[place].add(net)
    summary["networks"] = [", ".join(f"n{net:g}" for net in sorted(nets)) for nets in averaged_nets]
    most_cells = summary.groupby(GROUP)["cells"].transform("max")
    most_nets = summary.groupby(SETTING)["nets"].transform("max")
    summary["complete"] = (summary["cells"] == most_cells) & (summary["nets"] == most_nets)
    return summary


def _averaged(results: DataFrame) -> list[str]:
    """The columns to average, those of metrics included."""
    primary = [c for metric, _ in by_metric(tidy(results)) for c in (metric.before, metric.reference)]
    return [*AVERAGED, *AGREEMENT, *metrics_of(results), *primary]


def keep_column(quantity: str) -> str:
    """The column of achieved keep ratios of a quantity.

    Raises: ConfigError: unknown quantity.
    """
    if quantity not in QUANTITIES:
        raise ConfigError(f"quantity: must be {', '.join(QUANTITIES[:-1])} or {QUANTITIES[-1]}. Got {quantity!r}.")
    return f"keep_{quantity}"
