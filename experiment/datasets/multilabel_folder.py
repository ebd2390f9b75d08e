"""A folder of images, with a table of the labels that hold for each."""

from collections.abc import Mapping
from pathlib import Path

import pandas

from experiment.datasets.image_files import file_at, folder_part
from experiment.datasets.image_folder import FolderItems
from experiment.datasets.raw_images import Source, check_settings, pack
from experiment.datasets.table_files import read_table
from experiment.errors import DataError, shortened


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of a folder of images: ROOT/train/*.jpg, ROOT/train/labels.csv, and ROOT/test (or ROOT/val) likewise.

    The first column of labels.csv is the name of a file below the part's folder, the others are labels: 0 or 1. Images
    that it does not name are left out.

    Settings: `root` (absolute, below the folder of datasets, or relative to the working directory), `train` and `test`
    (names of the two folders), `labels` (name of the table in both).

    Raises: DataError: a file is missing or named twice, a label is not 0 or 1, or the parts have different labels.
    """
    check_settings(name, settings, ("root", "train", "test", "labels"))
    (folder, path, table), (_, other, known) = (_part(data_dir, part, settings) for part in (train, True))
    classes = tuple(map(str, known.columns[1:]))
    if tuple(table.columns[1:]) != classes:
        raise DataError(f"{path} and {other} have different columns. Expected {shortened(', '.join(classes))} in both.")
    if table.iloc[:, 0].duplicated().any():
        row = table.index[table.iloc[:, 0].duplicated()][0]
        raise DataError(f"{path}: row {row}: '{table.iloc[:, 0][row]}' is named in a row above. Remove one of them.")
    labels = table.iloc[:, 1:].apply(pandas.to_numeric, errors="coerce")
    wrong = ~labels.isin([0, 1])
    if wrong.any(axis=None):
        row = labels.index[wrong.any(axis=1)][0]
        column = labels.columns[wrong.loc[row]][0]
        got = shortened(repr(str(table.loc[row, column])))
        raise DataError(f"{path}: row {row}: expected 0 or 1 in column '{column}'. Got {got}. Mend the row.")
    files = []
    for row, file in table.iloc[:, 0].map(str).items():
        if not (folder / file).is_file():
            raise DataError(f"{path}: row {row}: no file {folder / file}. Mend the name, or remove the row.")
        files.append(file_at(file, folder / file))
    items = FolderItems(tuple(files), tuple(labels.to_numpy(float).tolist()))
    return Source(pack(items) or items, len(classes), classes=classes, place=folder)


def _part(data_dir: Path, train: bool, settings: Mapping[str, object]) -> tuple[Path, Path, pandas.DataFrame]:
    """Folder and table of a part."""
    folder = folder_part(data_dir, train, settings)
    path = folder / str(settings.get("labels", "labels.csv"))
    return folder, path, read_table(path)
