"""Whether a report is up to date, and which plots belong to it: a stamp file beside the plots records both."""

import hashlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from experiment.errors import StoreError
from experiment.escaping import json_text
from experiment.files import read_file, read_json, write_whole

INPUTS = ("results.csv", "parameters.yaml", "environment.json", "data.json", "sensitivity.csv")
OUTPUTS = ("report.md", "report.html", "table.tex", "comparisons.csv")
NAME = ".report.json"
ENDINGS = (".pdf", ".png")
FORMAT = 3


def made_from(folder: Path, kinds: Sequence[Callable[..., Any]]) -> str:
    """A hash of everything that a report depends on: files of the experiment, its path, and the code of the report.

    Args:
        kinds: the kinds of plots in the report.
    """
    names = [kind.__name__ for kind in kinds]
    digest = hashlib.sha256(f"{FORMAT} {folder.as_posix()} {names} {metadata.version('matplotlib')}".encode())
    own = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".html", ".js"))
    for path in [*(folder / name for name in INPUTS), *own]:
        try:
            content = read_file(path)
        except FileNotFoundError:
            content = b""
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def stamped_plots(folder: Path, source: str) -> list[Path] | None:
    """The plots of the report made from `source`; None if there is no such report, or one of its files is missing."""
    plots, files = own_plots(folder), [folder / name for name in OUTPUTS]
    whole = all(path.is_file() for path in [*plots, *files])
    return plots if whole and _read(folder)["made_from"] == source else None


def own_plots(folder: Path) -> list[Path]:
    """The plots that earlier reports left in the folder, according to their stamp."""
    return [folder / "plots" / name for name in _read(folder)["plots"]]


def write_stamp(folder: Path, source: str | None, plots: Sequence[Path]) -> None:
    """Record which plots belong to the report and what it was made from (None while it is being written)."""
    names = [path.name for path in plots]
    stamp = {"format": FORMAT, "made_from": source, "plots": names}
    write_whole(folder / "plots" / NAME, json_text(stamp, indent=1) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    """The stamp; an empty one if the file is missing or damaged, so that the report is written again."""
    try:
        stamp = read_json(folder / "plots" / NAME)
        names = stamp["plots"]
        plain = all(name == Path(name).name and name.endswith(ENDINGS) for name in names)
        if stamp["format"] == FORMAT and plain:
            return {"made_from": stamp["made_from"], "plots": names}
    except (OSError, StoreError, KeyError, TypeError, AttributeError):
        pass
    return {"made_from": None, "plots": []}
