"""Whether a report is up to date, and which plots are its own: both are remembered beside its plots."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from experiment.errors import StoreError
from experiment.escaping import json_text
from experiment.files import read_file, read_json, write_whole

INPUTS = (
    "results.csv",
    "parameters.yaml",
    "environment.json",
    "data.json",
)  # the keys in results.csv stand for the cells' folders
OUTPUTS = ("report.md", "report.html", "table.tex")
NAME = ".report.json"
ENDINGS = (".pdf", ".png")
FORMAT = 3


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
    stamp = _read(folder)
    plots = [folder / "plots" / name for name in stamp["plots"]]
    if stamp["made_from"] != source:
        return None
    try:
        return plots if stamp["bytes"] == _sizes(folder, plots) else None
    except OSError:
        return None


def own_plots(folder: Path) -> list[Path]:
    """The plots that reports have left in a folder, as their stamp names them; no other file is theirs."""
    return [folder / "plots" / name for name in _read(folder)["plots"]]


def write_stamp(folder: Path, source: str | None, plots: Sequence[Path]) -> None:
    """Remember which plots are a report's, and what it was made from: None of one that is only being made."""
    names = [path.name for path in plots]
    sizes = [] if source is None else _sizes(folder, plots)
    stamp = {"format": FORMAT, "made_from": source, "plots": names, "bytes": sizes}
    write_whole(folder / "plots" / NAME, json_text(stamp, indent=1) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    """What the stamp says; nothing where there is none, or a damaged one, which costs a drawing and no more."""
    try:
        stamp = read_json(folder / "plots" / NAME)
        names = stamp["plots"]
        plain = all(name == Path(name).name and name.endswith(ENDINGS) for name in names)
        if stamp["format"] == FORMAT and plain:
            return {"made_from": stamp["made_from"], "plots": names, "bytes": stamp["bytes"]}
    except (OSError, StoreError, KeyError, TypeError, AttributeError):
        pass
    return {"made_from": None, "plots": [], "bytes": []}


def _sizes(folder: Path, plots: Sequence[Path]) -> list[int]:
    return [path.stat().st_size for path in [*plots, *(folder / name for name in OUTPUTS)]]
