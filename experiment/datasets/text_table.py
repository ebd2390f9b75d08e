"""Tables of texts with a class or a number each, and GLUE's own files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
from torch import Tensor

from experiment.datasets.glue import as_table
from experiment.datasets.raw_images import Source, check_settings
from experiment.datasets.table_files import check_columns, read_table
from experiment.datasets.text_files import part_path
from experiment.datasets.tokenizers import Bytes, HuggingFace, length_of, of_short_texts
from experiment.errors import ConfigError, DataError, log
from experiment.escaping import is_number

SETTINGS = ("root", "train", "test", "text", "pair", "label", "classes", "header", "tokenizer", "length")
MISSING = ("", "nan", "none")  # labels of a row without one


@dataclass(frozen=True)
class TextItems:
    """Texts, or pairs of texts, as inputs of a network, and their class numbers or numbers."""

    texts: Sequence[str]
    pairs: Sequence[str | None]
    labels: Sequence[float]
    tokenizer: Bytes | HuggingFace
    length: int

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], float]:
        return self.tokenizer.inputs(self.texts[index], self.pairs[index], self.length), self.labels[index]


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of the user's own table: CSV, TSV, JSON lines or parquet.

    Settings: `train` and `test` (files), `root` (the folder they are in), `text` (a column (text)), `pair` (the column
    of a second text), `label` (a column (label)), `classes` (labels in the order of their class numbers; by default
    labels that are numbers stay, and others are sorted), `header` (whether CSV and TSV begin with the names of the
    columns (true); otherwise columns are numbered from 0), `tokenizer` (bytes, the default, or the folder of a Hugging
    Face tokenizer), `length` of the inputs in tokens (128).

    Raises:
        ConfigError: a setting is wrong.
        DataError: a file is missing, empty or not UTF-8, or a column, a text or a label is missing.
    """
    check_settings(name, settings, SETTINGS)
    return _load(data_dir, train, settings, incomplete=False)


def load_glue(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of a dataset of GLUE. The test part is `dev.tsv`, as GLUE's own has no labels.

    Settings: `root` (the folder with GLUE's folders CoLA, SST-2, ... (glue)), `test`, `tokenizer` (bytes, or the folder
    of a Hugging Face tokenizer (bert-base-cased)), `length` of the inputs in tokens (128).

    Source: Wang et al. 2018, https://arxiv.org/abs/1804.07461
    """
    check_settings(name, settings, ("root", "test", "tokenizer", "length"))
    table = as_table(name, settings)
    path = part_path(data_dir, train, table)
    if not path.is_file():
        raise DataError(
            f"dataset {name} is missing: no file {path}. Get it from https://gluebenchmark.com/tasks and unpack it "
            "there, or set settings.root to the folder with CoLA, SST-2, ..."
        )
    return _load(data_dir, train, table, incomplete=True)


def _load(data_dir: Path, train: bool, settings: Mapping[str, object], *, incomplete: bool) -> Source:
    """One part of a table, without rows that miss a label if it may be `incomplete`."""
    path, tokenizer = part_path(data_dir, train, settings), of_short_texts(settings, data_dir)
    table = _columns(path, settings)
    if incomplete and len(whole := table[~table["label"].isin(MISSING)]) < len(table):
        log.warning("%s: %d rows without a label are left out", path, len(table) - len(whole))
        table = whole
    given = settings.get("classes")
    if given is not None and (not isinstance(given, list | tuple) or len(given) < 2):
        raise ConfigError(f"settings.classes: must be a list of at least two labels. Got {given!r}.")
    known = _columns(part_path(data_dir, True, settings), settings) if given is None and not train else table
    classes = tuple(map(str, given)) if given is not None else _names(known["label"])
    labels = [_label(f"{path}: row {i}", label, classes) for i, label in table["label"].items()]
    pairs = table["pair"].tolist() if "pair" in table else [None] * len(table)
    items = TextItems(table["text"].tolist(), pairs, labels, tokenizer, length_of(settings))
    return Source(items, len(classes) or None, classes=classes)


def _columns(path: Path, settings: Mapping[str, object]) -> pandas.DataFrame:
    """The columns `text`, `label` and, if it is asked for, `pair` of a file, all of them text."""
    header = settings.get("header", True)
    if not isinstance(header, bool):
        raise ConfigError(f"settings.header: must be true or false. Got {header!r}.")
    table = read_table(path, header=header)
    wanted = {"text": str(settings.get("text", "text")), "label": str(settings.get("label", "label"))}
    wanted |= {"pair": str(settings["pair"])} if settings.get("pair") is not None else {}
    for key, column in wanted.items():
        check_columns(path, table, [column], f"Set settings.{key}.")
        if key != "label" and table[column].isna().any():
            row = table.index[table[column].isna()][0]
            raise DataError(f"{path}: row {row}: no text in column '{column}'. Fill it in, or remove the row.")
    return pandas.DataFrame({key: table[column].map(str).str.strip() for key, column in wanted.items()})


def _names(labels: pandas.Series) -> tuple[str, ...]:
    """The names of classes, sorted; none if all labels are numbers."""
    found = {label for label in labels.unique() if label.lower() not in MISSING}
    return () if all(map(is_number, found)) else tuple(sorted(found))


def _label(where: str, label: str, classes: Sequence[str]) -> float:
    """A label as class number or number."""
    if label in classes:
        return classes.index(label)
    if label.lower() in MISSING:
        raise DataError(f"{where}: no label. Fill it in, or remove the row.")
    if classes or not is_number(label) or not math.isfinite(float(label)):
        expected = f"one of the classes {', '.join(classes)}"[:300] if classes else "a finite number"
        raise DataError(f"{where}: expected {expected} as label. Got {label[:40]!r}. Mend the row.")
    return float(label)
