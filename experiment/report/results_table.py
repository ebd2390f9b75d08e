"""results.csv as a DataFrame: columns, types, and the rows that plots and tables select from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.deploy.formats import FORMATS
from experiment.errors import ConfigError, StoreError
from experiment.files import RUN_AGAIN
from experiment.report.primary_metric import AGREEMENT, DEFAULTS, OF_CLASSES, ReportedMetric, by_metric, registered
from experiment.run.disk import pareto
from experiment.run.disk.pareto import SECONDS
from experiment.run.disk.results_table import read_table

if TYPE_CHECKING:
    from pandas import DataFrame

TEXT = (
    "dataset", "dataset_test", "network", "variant", "method", "label", "status", "error", "cell", "hardware", "pareto",
    *DEFAULTS,
)  # fmt: skip
NUMBERS = (
    "net", "repetition", "keep_target", "parameters", "flops", "flops_unmasked", "keep_parameters", "keep_flops",
    "bytes_dense", "bytes_values", "bytes_sparse", "bytes_file", "loss", "top1", "top5", "top1_before_retraining",
    "top1_reference", "parameters_reference", "flops_reference", "epochs", "seconds_compress", "seconds_retrain",
    *AGREEMENT,
)  # fmt: skip
EXTRA_NUMBERS = re.compile(
    r"latency_(iqr_)?ms_b\d+(_reference)?|frames_per_second_b\d+|memory_(weights|b\d+)|bytes_bitmask|bytes_csr|"
    rf"noise_[a-z_]+_[0-9.e+-]+|(?!error_)\w+_({'|'.join(FORMATS)})(_b\d+)?"
    r"|(limit|predicted|measured)_(parameters|flops|bytes|latency|memory)|seconds_tune"
)  # only if requested
DERIVED = ("keep_flops_unmasked", "keep_bytes", "seconds")
TIDY = "tidy"  # key in `DataFrame.attrs`: a hash of the column types of a frame that `tidy` returned
LATENCY = re.compile(r"latency_ms_b(\d+)")
REQUIRED = ("network", "label", "net", "status")
REFERENCE = "Reference"
FLOAT32 = 4  # bytes of an unquantized weight
SETTING = [*pareto.SETTING]
GROUP = [*SETTING, "method", "label"]


def read_results(path: Path) -> DataFrame:
    """Read results.csv; returns an empty table if the file is missing.

    Raises: StoreError: the file is damaged, or a required column is missing.
    """
    import pandas as pd

    try:
        frame = read_table(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        return tidy(pd.DataFrame(columns=list(REQUIRED)))
    missing = [column for column in REQUIRED if column not in frame]
    if missing:
        raise StoreError(f"{path}: column {missing[0]} is missing. {RUN_AGAIN}")
    return tidy(frame)


def tidy(results: DataFrame) -> DataFrame:
    """A copy with every column of results.csv in its type: missing text is "", missing numbers and infinities are NaN.

    Raises: StoreError: a required column is missing.
    """
    import numpy as np
    import pandas as pd

    missing = [column for column in REQUIRED if column not in results]
    if missing:
        raise StoreError(f"results: column {missing[0]} is missing. Expected the columns of results.csv.")
    if results.attrs.get(TIDY) == hash(tuple(results.dtypes.items())):
        return results.reset_index(drop=True)
    frame = results.copy()
    for column in TEXT:
        given = frame[column].astype(object) if column in frame else pd.Series("", frame.index, dtype=object)
        frame[column] = given.where(given.notna(), "").astype(str)
    for column, default in DEFAULTS.items():
        frame[column] = frame[column].where(frame[column] != "", default)
    for column in (*NUMBERS, *_more_numbers(frame)):
        values = pd.to_numeric(frame[column], errors="coerce") if column in frame else np.nan
        frame[column] = pd.Series(values, index=frame.index, dtype=float).replace([np.inf, -np.inf], np.nan)
    frame["method"] = frame["method"].where(frame["method"] != "", frame["label"])
    frame["keep_flops_unmasked"] = frame["flops_unmasked"] / frame["flops_reference"]
    frame["keep_bytes"] = frame["bytes_sparse"] / (FLOAT32 * frame["parameters_reference"])
    frame["seconds"] = frame[[c for c in SECONDS if c in frame]].sum(axis=1, min_count=1)
    frame.attrs[TIDY] = hash(tuple(frame.dtypes.items()))  # pandas copies attrs with every frame: long ones take long
    return frame.reset_index(drop=True)


def _more_numbers(frame: DataFrame) -> list[str]:
    """The columns of other primary metrics, and all others that hold numbers alone."""
    import pandas as pd

    metrics = map(ReportedMetric, dict.fromkeys(frame["primary"]))
    own = [column for metric in metrics for column in (metric.name, metric.before, metric.reference)]
    others = frame.drop(columns=[*TEXT, *NUMBERS], errors="ignore")
    others = others.replace("", None).dropna(axis=1, how="all")
    plain = [c for c in map(str, others) if pd.to_numeric(others[c].dropna(), errors="coerce").notna().all()]
    return [
        c for c in dict.fromkeys([*own, *plain, *filter(EXTRA_NUMBERS.fullmatch, map(str, frame))]) if c not in NUMBERS
    ]


def metrics_of(results: DataFrame) -> list[str]:
    """The columns of metrics that hold values, the primary ones first; the loss is no metric."""
    frame = tidy(results)
    own = [metric.name for metric, _ in by_metric(frame)]
    others = [str(c) for c in frame.select_dtypes("number").dropna(axis=1, how="all") if c not in (*own, *DERIVED)]
    found = [
        c for c in others if c in OF_CLASSES or (c not in NUMBERS and not EXTRA_NUMBERS.fullmatch(c) and registered(c))
    ]
    return [*own, *found]


def compressed(results: DataFrame) -> DataFrame:
    """The finished cells of compressed networks, in grid order."""
    frame = tidy(results)
    return frame[(frame["status"] == "done") & (frame["method"] != REFERENCE)]


def reference_rows(results: DataFrame) -> DataFrame:
    """The finished cells of method Reference, in grid order."""
    frame = tidy(results)
    return frame[(frame["status"] == "done") & (frame["method"] == REFERENCE)]


def references(results: DataFrame) -> DataFrame:
    """One row per (setting, net): loss, metrics and size of the reference network.

    Taken from the rows of method Reference. If such a row is missing, its values are taken from other rows.
    """
    import pandas as pd

    keys = [*SETTING, "net"]
    metrics = list(dict.fromkeys([*OF_CLASSES, *metrics_of(results)]))
    others = compressed(results).drop_duplicates(keys)
    others = others.assign(
        parameters=others["parameters_reference"], flops=others["flops_reference"],
        **dict.fromkeys(["loss", "bytes_file", "bytes_dense"], float("nan")),
        **{name: others.get(ReportedMetric(name).reference, float("nan")) for name in metrics},
    )  # fmt: skip
    columns = [*keys, "loss", *metrics, "parameters", "flops", "bytes_dense", "bytes_file", *DEFAULTS]
    found = pd.concat([reference_rows(results)[columns], others[columns]])
    return found.drop_duplicates(keys).reset_index(drop=True)


def select_variant(results: DataFrame, variant: str | None) -> DataFrame:
    """The rows of one variant, which may be None if there is only one.

    Raises: ConfigError: unknown variant, several variants and none selected, or several networks or datasets.
    """
    frame = tidy(results)
    known = list(dict.fromkeys(frame["variant"]))
    if variant is None and len(known) > 1:
        raise ConfigError(f"results: {len(known)} variants. Select one of {', '.join(map(repr, known))}.")
    if variant is not None and variant not in known:
        raise ConfigError(f"results: no variant {variant!r}. Known variants: {', '.join(map(repr, known))}.")
    chosen = frame if variant is None else frame[frame["variant"] == variant]
    if len(chosen[["dataset", "network"]].drop_duplicates()) > 1:
        raise ConfigError("results: several networks or datasets. Select the rows of one of them.")
    return chosen


def variants_of(results: DataFrame) -> list[str]:
    """Names of the variants in grid order."""
    return list(dict.fromkeys(tidy(results)["variant"]))


def latency_columns(results: DataFrame) -> list[str]:
    """The columns of measured latencies that hold any value, by rising batch size."""
    found = [str(c) for c in results.columns if LATENCY.fullmatch(str(c)) and results[c].notna().any()]
    return sorted(found, key=lambda column: int(column.rpartition("_b")[2]))


def labels_of(results: DataFrame) -> list[str]:
    """Labels of the compression methods in grid order, including those without a finished cell."""
    frame = tidy(results)
    return list(dict.fromkeys(frame.loc[frame["method"] != REFERENCE, "label"]))


def prune_only(results: DataFrame) -> bool:
    """Whether no compressed network was retrained."""
    cells = compressed(results)
    return not cells.empty and not bool((cells["epochs"] > 0).any())


def counts_bytes(results: DataFrame) -> bool:
    """Whether bytes say what parameters do not: weights are stored in other than 32 bits, or the budget is in bytes."""
    cells = compressed(results)
    quantized = (cells["bytes_values"] - FLOAT32 * cells["parameters"]).abs().gt(0.5)
    return bool(quantized.any()) or ("limit_bytes" in cells and bool(cells["limit_bytes"].notna().any()))
