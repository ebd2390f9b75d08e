"""Tables of numbers: scikit-learn's diabetes data, and the user's own files.

Shape suffixes: N = rows, F = features, K = values to predict.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from experiment.datasets.raw_images import Items, Source, check_settings
from experiment.datasets.table_files import check_columns, read_table
from experiment.datasets.text_files import part_path
from experiment.errors import ConfigError, DataError, shortened
from experiment.random_streams import generator

SETTINGS = ("root", "train", "test", "testShare", "splitSeed", "target", "features", "classes", "standardizeTarget")
MISSING = ("", "nan", "None")
TEST_EVERY = 5  # every fifth row of the diabetes data is a test row


def load_diabetes(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """354 training or 88 test patients: ten measurements, and the progression of diabetes a year later.

    The split is fixed. Inputs and targets have mean 0 and standard deviation 1 in the training part (validation
    included), so an RMSE of 1 is one standard deviation of the targets, 77 on their scale from 25 to 346.

    Source: Efron et al. 2004, https://doi.org/10.1214/009053604000000067, which scikit-learn ships.
    """
    check_settings(name, settings, ())
    from sklearn.datasets import load_diabetes  # takes a second, for this dataset only

    data = load_diabetes(scaled=False, as_frame=True)
    is_test = np.arange(len(data.frame)) % TEST_EVERY == TEST_EVERY - 1
    known, rows = data.frame[~is_test], data.frame[~is_test if train else is_test]
    measured = [str(column) for column in data.data]
    return _source(standardized(name, known, rows, measured), standardized(name, known, rows, ["target"]))


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of the user's own table: CSV, TSV, JSON lines or parquet.

    Settings: `train` and `test` (files), `root` (the folder they are in), `testShare` (0.2) and `splitSeed` (0) of the
    rows of `train` that are tested on if there is no `test`, `target` (a column, or a list of them), `features` (a list
    of columns; by default all others), `standardizeTarget` (true; otherwise RMSE is in the unit of the column), and
    `classes` (true for `network.task: classification`: the values of `target` are classes, numbered in the order of
    their names). Features and targets have mean 0 and standard deviation 1 in the training part.

    Raises:
        ConfigError: a setting is wrong.
        DataError: a file is missing or empty, a column is missing or constant, or a value is no number.
    """
    check_settings(name, settings, SETTINGS)
    path, known, rows = _parts(data_dir, train, settings)
    targets = _names(settings, "target")
    if not targets:
        raise ConfigError("settings.target: Table needs the column to predict, or a list of columns. Got none.")
    features = _names(settings, "features") or [str(c) for c in known if c not in targets]
    for table in (known, rows):
        check_columns(path, table, (*targets, *features), "Set settings.target, settings.features.")
    x_NF = standardized(path, known, rows, features)
    if settings.get("classes"):
        names = tuple(sorted(set(known[targets[0]].map(str)) - set(MISSING)))
        return _source(x_NF, _class_numbers(path, rows[targets[0]].map(str), names), names)
    scaled = settings.get("standardizeTarget", True)
    return _source(x_NF, standardized(path, known, rows, targets) if scaled else _numbers(path, rows, targets).float())


def standardized(where: object, known: pandas.DataFrame, rows: pandas.DataFrame, columns: Sequence[str]) -> Tensor:
    """Columns of `rows` minus their mean over the rows `known`, divided by their standard deviation there; float32.

    Raises: DataError: a value is no finite number, or a column is constant.
    """
    if len(known) < 2:
        raise DataError(f"{where}: the training part needs at least 2 rows. Got {len(known)}.")
    reference_NF = _numbers(where, known, columns)
    mean_F, std_F = reference_NF.mean(dim=0), reference_NF.std(dim=0, correction=0)
    for column, spread, mean in zip(columns, std_F.tolist(), mean_F.tolist(), strict=True):
        if not spread > 1e-12 * abs(mean):  # rounding
            raise DataError(
                f"{where}: column '{column}' has the same value, {mean:.6g}, in all rows of the training part. Leave "
                "it out: list the other columns in settings.features."
            )
    return ((_numbers(where, rows, columns) - mean_F) / std_F).float()


def _parts(
    data_dir: Path, train: bool, settings: Mapping[str, object]
) -> tuple[Path, pandas.DataFrame, pandas.DataFrame]:
    """The file of a part, the rows of the training part, and those of the part."""
    path = part_path(data_dir, True, settings)
    table = read_table(path)
    if settings.get("test") is not None:
        own = path if train else part_path(data_dir, False, settings)
        return own, table, table if train else read_table(own)
    share, seed = settings.get("testShare", 0.2), settings.get("splitSeed", 0)
    if not isinstance(share, float) or not 0 < share < 1:
        raise ConfigError(f"settings.testShare: must be between 0 and 1. Got {share!r}.")
    order = torch.randperm(len(table), generator=generator("table", str(seed)))
    num_test = max(1, round(share * len(table)))
    test, known = (table.iloc[part.sort().values.numpy()] for part in (order[:num_test], order[num_test:]))
    return path, known, known if train else test


def _names(settings: Mapping[str, object], key: str) -> list[str]:
    given = settings.get(key, [])
    return list(map(str, given)) if isinstance(given, list | tuple) else [str(given)]


def _numbers(where: object, rows: pandas.DataFrame, columns: Sequence[str]) -> Tensor:
    """Columns as float64 (N, F)."""
    parts = []
    for column in columns:
        values = pandas.to_numeric(rows[column], errors="coerce").to_numpy(float)
        if len(wrong := np.flatnonzero(~np.isfinite(values))):
            value = str(rows[column].iloc[wrong[0]])
            raise DataError(
                f"{where}: row {rows.index[wrong[0]]}: expected a finite number in column '{column}'. Got "
                f"{shortened(repr(value))}. Mend or remove the row, or leave the column out of settings.features."
            )
        parts.append(values)
    return torch.from_numpy(np.stack(parts, axis=1))


def _class_numbers(path: Path, column: pandas.Series, names: Sequence[str]) -> Tensor:
    """Class numbers (N,)."""
    for row, value in column.items():
        if value not in names:
            known = shortened(", ".join(names))
            raise DataError(
                f"{path}: row {row}: expected a class of the training part ({known}) in column '{column.name}'. Got "
                f"{shortened(repr(value))}. Mend or remove the row."
            )
    return torch.tensor([names.index(value) for value in column])


def _source(inputs: Tensor, targets: Tensor, classes: tuple[str, ...] = ()) -> Source:
    return Source(cast(Items, TensorDataset(inputs, targets)), len(classes) or None, classes=classes)
