"""Mean and spread of results over networks and repetitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from experiment.errors import ConfigError
from experiment.report.results_folder import FLOAT32, REFERENCE, tidy

if TYPE_CHECKING:
    from pandas import DataFrame

Quantity = Literal["parameters", "flops", "flops_unmasked", "bytes"]
QUANTITIES = get_args(Quantity)
Band = Literal["std", "range"]

SETTING = ["dataset", "dataset_test", "network", "variant"]
GROUP = [*SETTING, "method", "label"]
AVERAGED = [
    "keep_parameters", "keep_flops", "keep_flops_unmasked", "keep_bytes", "parameters", "flops", "loss", "top1", "top5",
    "top1_before_retraining", "top1_reference", "epochs", "bytes_dense", "bytes_values", "bytes_sparse", "bytes_file",
]  # fmt: skip


def compressed(results: DataFrame) -> DataFrame:
    """The rows of compressed networks that are done, in grid order."""
    frame = tidy(results)
    return frame[(frame["status"] == "done") & (frame["method"] != REFERENCE)]


def summarize(results: DataFrame) -> DataFrame:
    """One row a (setting, label, keep_target): mean, sample standard deviation, extremes over networks and repetitions.

    Returns: the columns of GROUP, `keep_target`, `cells` (how many were averaged), `nets` (of how many networks),
        `complete` (False where other rows of the label average more cells, or other labels more networks), and for
        every averaged column c: c, c_std (NaN for one cell), c_min, c_max. Grid order.
    """
    import pandas as pd

    keys = [*GROUP, "keep_target"]
    cells = compressed(results)
    if cells.empty:
        extra = [f"{column}{end}" for column in AVERAGED for end in ("", "_std", "_min", "_max")]
        return pd.DataFrame(columns=[*keys, "cells", "nets", "complete", *extra])
    grouped = cells.groupby(keys, sort=False, dropna=False)
    parts: list[Any] = [grouped.size().rename("cells"), grouped["net"].nunique().rename("nets")]
    for column in AVERAGED:
        of_column = grouped[column]
        parts += [of_column.mean(), of_column.std().rename(f"{column}_std")]
        parts += [of_column.min().rename(f"{column}_min"), of_column.max().rename(f"{column}_max")]
    summary: DataFrame = pd.concat(parts, axis=1).reset_index()
    most_cells = summary.groupby(GROUP)["cells"].transform("max")
    most_nets = summary.groupby(SETTING)["nets"].transform("max")
    summary["complete"] = (summary["cells"] == most_cells) & (summary["nets"] == most_nets)
    return summary


def references(results: DataFrame) -> DataFrame:
    """One row a (setting, net): the reference network's loss, top1, top5 and size.

    Taken from the rows of method Reference and, where such a row is not there yet, from what other rows say about it.
    """
    import pandas as pd

    frame = tidy(results)
    frame = frame[frame["status"] == "done"]
    keys = [*SETTING, "net"]
    own = frame[frame["method"] == REFERENCE].drop_duplicates(keys)
    told = frame[frame["method"] != REFERENCE].drop_duplicates(keys)
    told = told.assign(
        top1=told["top1_reference"], parameters=told["parameters_reference"], flops=told["flops_reference"],
        loss=float("nan"), top5=float("nan"), bytes_file=float("nan"), bytes_dense=float("nan"),
    )  # fmt: skip
    columns = [*keys, "loss", "top1", "top5", "parameters", "flops", "bytes_dense", "bytes_file"]
    return pd.concat([own[columns], told[columns]]).drop_duplicates(keys).reset_index(drop=True)


def select_variant(results: DataFrame, variant: str | None) -> DataFrame:
    """The rows of one variant, which need not be named where there is only one.

    Raises: ConfigError: there is no such variant, or several and none is named, or several networks or datasets.
    """
    frame = tidy(results)
    known = list(dict.fromkeys(frame["variant"]))
    if variant is None and len(known) > 1:
        raise ConfigError(f"results hold {len(known)} variants: name one of {', '.join(map(repr, known))}.")
    if variant is not None and variant not in known:
        raise ConfigError(f"no variant {variant!r} in these results. Known: {', '.join(map(repr, known))}.")
    chosen = frame if variant is None else frame[frame["variant"] == variant]
    if len(chosen[["dataset", "network"]].drop_duplicates()) > 1:
        raise ConfigError("results hold several networks or datasets: select the rows of one of them first.")
    return chosen


def labels_of(results: DataFrame) -> list[str]:
    """Labels of the compression methods in grid order, those without a finished cell too."""
    frame = tidy(results)
    return list(dict.fromkeys(frame.loc[frame["method"] != REFERENCE, "label"]))


def prune_only(results: DataFrame) -> bool:
    """Whether no compressed network was retrained."""
    cells = compressed(results)
    return not cells.empty and not bool((cells["epochs"] > 0).any())


def quantized(results: DataFrame) -> bool:
    """Whether any network has weights of other bits than 32, which counts of parameters do not show."""
    cells = compressed(results)
    return bool((cells["bytes_values"] - FLOAT32 * cells["parameters"]).abs().gt(0.5).any())


def keep_column(quantity: str) -> str:
    """The column of achieved keep ratios of a quantity.

    Raises: ConfigError: the quantity is unknown.
    """
    if quantity not in QUANTITIES:
        raise ConfigError(f"quantity: must be {', '.join(QUANTITIES[:-1])} or {QUANTITIES[-1]}. Got {quantity!r}.")
    return f"keep_{quantity}"
