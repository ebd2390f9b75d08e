"""Tables of results, read with pandas whatever is in the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.errors import Damaged, shortened
from experiment.files import RUN_AGAIN, read_file

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_FIELDS = 10_000_000  # of a table


def read_table(path: Path, **how: Any) -> DataFrame:
    """A table of results.

    Args:
        how: of `pandas.read_csv`.
    Raises: as `read_file`; Damaged also where it is no table, is empty, or ends within a line.
    """
    import pandas as pd

    data = read_file(path)
    if not data:
        raise Damaged(f"{path}: is not a table of results: it is empty. {RUN_AGAIN}")
    if not data.endswith(b"\n"):
        raise Damaged(f"{path}: is cut off in its last line. {RUN_AGAIN}")
    lines, columns = data.count(b"\n") + data.count(b"\r"), data.partition(b"\n")[0].count(b",") + 1
    if lines * columns > MOST_FIELDS:  # pandas makes short lines as long as the first one
        raise Damaged(f"{path}: has {lines:,} lines of {columns:,} columns. At most {MOST_FIELDS:,} fields are read.")
    try:
        table: DataFrame = pd.read_csv(io.BytesIO(data), **how)
    except Exception as error:  # no list of what pandas raises on damaged files is complete
        reason = shortened(str(error).strip().partition("\n")[0])
        raise Damaged(f"{path}: is not a table of results: {reason}. {RUN_AGAIN}") from error
    return table
