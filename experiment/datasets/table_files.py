"""Tables in files: CSV, TSV, JSON lines, parquet."""

import csv
import io
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from experiment.datasets.text_files import read_text
from experiment.errors import DataError, first_line, shortened
from experiment.registry import suggestion


def read_table(path: Path, *, header: bool = True) -> pandas.DataFrame:
    """The rows of a table, numbered from 1. Columns of CSV and TSV without a header are numbered from 0.

    Values of CSV and TSV are text, and those that are missing are empty. TSV has no quotes.

    Raises: DataError: the file cannot be read, is no table, or has no rows.
    """
    kind = path.suffix.lower()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows that are longer than the header
            table: pandas.DataFrame = _read(path, kind, 0 if header else None)
    except ImportError:
        raise DataError(f"{path}: parquet needs pyarrow: pip install pyarrow. Or save it as JSON lines.") from None
    except DataError:
        raise
    except Exception as error:  # pandas' and pyarrow's own classes
        expected = "texts that hold the separator in quotes" if kind == ".csv" else f"a {kind[1:]} table"
        raise DataError(f"{path}: expected {expected}: {first_line(error)}") from None
    if not len(table):
        raise DataError(f"{path} has no rows. Expected one per sample.")
    return table.set_axis(range(1, len(table) + 1)).set_axis(table.columns.map(str), axis=1)


def check_columns(path: object, table: pandas.DataFrame, columns: Iterable[str], how: str) -> None:
    """Check that a table has these columns.

    Raises: DataError: it has not; `how` says what to do.
    """
    for column in columns:
        if column not in table:
            have = f"{suggestion(column, table.columns)} It has {shortened(', '.join(table.columns))}."
            raise DataError(f"{path} has no column '{column}'.{have} {how}")


def _read(path: Path, kind: str, header: int | None) -> Any:
    text: Any = {"dtype": str, "keep_default_na": False, "index_col": False, "header": header}
    if kind == ".csv":
        content = read_text(path)
        first = content.partition("\n")[0]
        if header is not None and ";" in first and "," not in first:
            raise DataError(f"{path}: columns are separated by ';'. Expected ',', and a decimal point in numbers.")
        return pandas.read_csv(io.StringIO(content), **text)
    if kind == ".tsv":
        return pandas.read_csv(io.StringIO(read_text(path)), sep="\t", quoting=csv.QUOTE_NONE, **text)
    if kind == ".jsonl":
        return pandas.DataFrame(
            [_object(path, i, line) for i, line in enumerate(read_text(path).split("\n"), 1) if line]
        )
    if kind == ".parquet":
        return pandas.read_parquet(path)
    raise DataError(f"{path}: expected a file that ends in .csv, .tsv, .jsonl or .parquet.")


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{path}:{number}: expected one JSON object per line. Got {line[:40]!r}.")
    return values
