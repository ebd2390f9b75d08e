"""What the benchmarks that measure rows share: each printed as it comes, all of them written to a file at the end."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

Row = dict[str, object]


def show(rows: Iterable[Row], widths: Mapping[str, int], file: Path | None) -> None:
    """Print a table with a header; columns without a width have that of their name. Write it as CSV to `file`."""
    made: list[Row] = []
    for row in rows:
        if not made:
            print(" ".join(f"{name:>{widths.get(name, len(name))}}" for name in row))
        print(" ".join(f"{value!s:>{widths.get(name, len(name))}}" for name, value in row.items()), flush=True)
        made.append(row)
    if file and made:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(made[0]))
            writer.writeheader()
            writer.writerows(made)
