"""The results folder of one experiment: its files, read and checked."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiment.config import Parameters
from experiment.errors import Damaged, StoreError, described
from experiment.files import RUN_AGAIN, read_file, read_json
from experiment.report.results_table import metrics_of, read_results
from experiment.run.disk.damaged_files import read_intact, warn_of_damage
from experiment.run.disk.parameters_file import PARAMETERS, VariantSettings, read_parameters
from experiment.run.disk.store import Store
from experiment.run.grid.data_facts import DataFacts, read_data_record

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Source:
    """The content of one experiment's folder.

    Attributes:
        folder: the folder itself.
        name: the path below `results`, such as `cifar/prune/resnet20`; otherwise the folder's own name.
        results: the rows of results.csv on the first test set of each variant, as returned by `tidy`.
        every_test: the rows of all test sets.
        parameters: the resolved settings.
        variants: the resolved settings of every variant.
        environment: environment.json; empty if the file is missing.
        data: facts about every dataset, from data.json; empty if the file is missing.
    """

    folder: Path
    name: str
    results: DataFrame
    parameters: Parameters
    variants: Sequence[VariantSettings]
    environment: Mapping[str, Any]
    every_test: DataFrame
    data: Sequence[DataFacts] = ()

    def other_metrics(self, rows: DataFrame) -> list[str]:
        """The metrics beside the primary one; top-5 accuracy with more than five classes only, else it is always 1."""
        several = self.parameters.network.output_size > 5
        return [name for name in metrics_of(rows)[1:] if name != "top5" or several]

    def settings_of(self, variant: str) -> Parameters:
        """The resolved settings of a variant."""
        return next((each.parameters for each in self.variants if each.name == variant), self.parameters)


def read_source(folder: Path) -> Source:
    """Read an experiment's folder. The table is empty if no cell has finished yet.

    Raises: StoreError: this is no experiment's folder, or one of its files is damaged.
    """
    folder = Path(folder)
    require_experiment(folder)
    settings = read_parameters(folder)
    every_test = read_results(folder / "results.csv")
    first = every_test.groupby("variant", sort=False)["dataset_test"].transform("first")
    return Source(
        folder=folder,
        name=_name(folder),
        results=every_test[every_test["dataset_test"] == first].reset_index(drop=True),
        every_test=every_test,
        parameters=settings.parameters,
        variants=settings.variants,
        environment=_read_environment(folder / "environment.json"),
        data=read_data_record(folder).data,
    )


def require_experiment(folder: Path) -> None:
    """Raises: StoreError: this is no experiment's folder."""
    if not (folder / PARAMETERS).is_file():
        raise StoreError(
            f"{folder}: has no {PARAMETERS}. Expected the folder of an experiment, such as data/results/mnist/prune."
        )


def read_cells(
    folder: Path, cells: DataFrame, file: str, columns: Sequence[str], texts: Sequence[str] = ("layer",)
) -> DataFrame:
    """Concatenate a CSV file of several cells, such as layers.csv or history.csv.

    Args:
        folder: the experiment's folder.
        cells: rows of results.csv. Cells without the file, or with a damaged one, are left out.
        file: name of the CSV file.
        columns: columns to read.
        texts: those of them that may hold text.

    Returns: these columns, and the variant, method, label, net, repetition and keep_target of the cell. Empty, without
        these columns, if no cell has the file.
    """
    import pandas as pd

    carried = cells[["variant", "method", "label", "net", "repetition", "keep_target"]]
    folders, found = Store(folder).cell_folders(), list[_CellFile]()
    for place, cell in enumerate(cells["cell"].astype(str)):
        content = read_intact(folders[cell], file) if cell in folders else None
        if content is not None:
            header, _, rows = content.partition(b"\n")
            found.append(_CellFile(place, folders[cell] / file, header, rows))
    frames = []
    for _, files in itertools.groupby(found, key=lambda each: each.header):
        for parsed, places in _parsed(list(files), columns, texts):
            frames.append(pd.concat([parsed, carried.iloc[places].reset_index(drop=True)], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(carried))


class _CellFile(NamedTuple):
    """A CSV file of the cell in a place of a table: its first line, and the others."""

    place: int
    path: Path
    header: bytes
    rows: bytes


def _parsed(
    files: Sequence[_CellFile], columns: Sequence[str], texts: Sequence[str]
) -> Iterator[tuple[DataFrame, list[int]]]:
    """The rows of files with the same header and the place of each, parsed at once; one by one if any is damaged."""
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    data = io.BytesIO(b"\n".join([files[0].header, *(each.rows for each in files)]))  # pandas skips empty lines
    places = [each.place for each in files for _ in each.rows.splitlines()]
    try:
        frame = pd.read_csv(data, usecols=lambda name: name in columns, low_memory=False)
    except (ValueError, OSError):  # pandas' parser errors are ValueErrors
        frame = None
    if frame is not None and frame.empty:  # no epochs of retraining: columns without values have no numeric type
        return
    if len(files) == 1:  # its fields may have several lines
        places = places[:1] * (0 if frame is None else len(frame))
    typed = frame is not None and all(name in texts or is_numeric_dtype(frame[name]) for name in frame)
    if frame is not None and typed and len(frame) == len(places):
        yield frame, places
    elif len(files) == 1:
        warn_of_damage(files[0].path)
    else:
        for each in files:
            yield from _parsed([each], columns, texts)


def read_arrays(
    folder: Path, cells: Sequence[str], file: str, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The key of every cell that has a file of numpy arrays, such as samples.npz, with its arrays.

    Args:
        cells: keys. Cells without the file, or with a damaged one, are left out.
        names: of the arrays.
    """
    import numpy as np

    folders = Store(folder).cell_folders()
    for cell in cells:
        if cell not in folders:
            continue
        path = folders[cell] / file
        try:  # archives have checksums of their own
            with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in names}
        except FileNotFoundError:
            continue
        except Exception:  # zipfile documents no complete list of what damaged files raise
            warn_of_damage(path)
        else:
            yield cell, found


def _name(folder: Path) -> str:
    parts = folder.resolve().parts
    if "results" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("results")
        return "/".join(parts[last + 1 :]) or folder.name
    return folder.resolve().name


def _read_environment(path: Path) -> Mapping[str, Any]:
    try:
        data = read_json(path)
    except FileNotFoundError:
        return {}
    except Damaged as error:
        raise Damaged(f"{error} {RUN_AGAIN}") from error
    if not isinstance(data, Mapping):
        raise Damaged(f"{path}: must hold a mapping. Got {described(data)}. {RUN_AGAIN}")
    return data
