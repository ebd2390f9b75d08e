"""Whether a report is up to date: what it was made from, remembered beside its plots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from experiment.errors import StoreError
from experiment.files import read_file, read_json, write_whole

INPUTS = ("results.csv", "parameters.yaml", "environment.json")  # the keys in results.csv stand for the cells' folders
OUTPUTS = ("report.md", "report.html", "table.tex")
NAME = ".report.json"
FORMAT = 2


def made_from(folder: Path) -> str:
    """A hash of everything that a report depends on: the experiment's files, its place, and the code that writes it."""
    digest = hashlib.sha256(f"{FORMAT} {folder.as_posix()} {metadata.version('matplotlib')}".encode())
    own = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".html"))
    for path in [*(folder / name for name in INPUTS), *own]:
        try:
            content = read_file(path)
        except FileNotFoundError:
            content = b""
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def stamped_plots(folder: Path, source: str) -> list[Path] | None:
    """The plots of the report that was made from `source`; None where there is none, or a file of it is gone or cut."""
    path = folder / "plots" / NAME
    try:
        stamp = read_json(path)
        plots = [folder / "plots" / str(name) for name in stamp["plots"]]
        same = stamp["format"] == FORMAT and stamp["made_from"] == source
        return plots if same and stamp["bytes"] == _sizes(folder, plots) else None
    except (StoreError, ValueError, KeyError, TypeError, OSError):  # a damaged stamp costs a drawing, no more
        return None


def write_stamp(folder: Path, source: str, plots: Sequence[Path]) -> None:
    """Remember what the report was made from and which plots belong to it."""
    names = [path.name for path in plots]
    stamp = {"format": FORMAT, "made_from": source, "plots": names, "bytes": _sizes(folder, plots)}
    write_whole(folder / "plots" / NAME, json.dumps(stamp, indent=1) + "\n")


def _sizes(folder: Path, plots: Sequence[Path]) -> list[int]:
    return [path.stat().st_size for path in [*plots, *(folder / name for name in OUTPUTS)]]
