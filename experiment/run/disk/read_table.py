"""Reading CSV tables of results with pandas, from files of any content."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.errors import Damaged, shortened
from experiment.files import RUN_AGAIN, read_file

if TYPE_CHECKING:
    from pandas import DataFrame

MAX_FIELDS = 10_000_000


def read_table(path: Path, **options: Any) -> DataFrame:
    """Read a CSV table of results.

    Args:
        options: of `pandas.read_csv`.
    Raises: as `read_file`; Damaged also if it is not a table, is empty, or ends within a line.
    """
    import pandas as pd

    data = read_file(path)
    if not data:
        raise Damaged(f"{path}: is not a table of results: it is empty. {RUN_AGAIN}")
    if not data.endswith(b"\n"):
        raise Damaged(f"{path}: is truncated in its last line. {RUN_AGAIN}")
    lines, columns = data.count(b"\n") + data.count(b"\r"), data.partition(b"\n")[0].count(b",") + 1
    if lines * columns > MAX_FIELDS:  # pandas pads short lines to the length of the first
        raise Damaged(f"{path}: has {lines:,} lines of {columns:,} columns. At most {MAX_FIELDS:,} fields are read.")
    try:
        table: DataFrame = pd.read_csv(io.BytesIO(data), **options)
    except Exception as error:  # pandas documents no complete list of what damaged files raise
        first_line = shortened(str(error).strip().partition("\n")[0])
        raise Damaged(f"{path}: is not a table of results: {first_line}. {RUN_AGAIN}") from error
    return table
