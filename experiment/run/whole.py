"""Whether what lies on the disk is what was written, or shortened by a power cut or a bad disk. No torch here."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from experiment.files import write_whole
from experiment.run.keys import FORMAT_VERSION

log = logging.getLogger("experiment")

SIZES = "files.json"  # of a trained network's folder; a cell's result.json holds them itself
STATUSES = ("done", "failed", "infeasible")
COUNTS = ("parameters", "flops")


def sizes_of(folder: Path) -> dict[str, int]:
    """Name -> bytes of the files that are in a folder now."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def first_cut(folder: Path, sizes: Mapping[str, object]) -> Path | None:
    """The first file that has another size than when it was written; one that is gone was removed by somebody."""
    for name, size in sizes.items():
        path = folder / Path(str(name)).name
        if path.is_file() and path.stat().st_size != size:
            return path
    return None


def whole_file_of(place: Path, name: str) -> Path | None:
    """A file of a cell's folder; None where it is missing, or cut off, which is told."""
    path = place / name
    if not path.is_file():
        return None
    try:
        sizes = json.loads((place / "result.json").read_text(encoding="utf-8"))["files"]
        whole = path.stat().st_size == sizes.get(name, path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = True  # an older version says nothing of sizes; what is wrong with result.json is told elsewhere
    if not whole:
        log.warning("%s is cut off: left out. Run the experiment again to make it anew.", path)
    return path if whole else None


def is_result(found: object) -> bool:
    """Whether the content of a result.json is one, as far as others rely on it."""
    if (
        not isinstance(found, dict)
        or found.get("status") not in STATUSES
        or not isinstance(found.get("files", {}), dict)
    ):
        return False
    if found["status"] != "done":
        return True
    counts, accuracy = [found.get(name) for name in COUNTS], found.get("top1")
    return all(type(count) is int for count in counts) and isinstance(accuracy, float) and math.isfinite(accuracy)


def write_sizes(folder: Path) -> None:
    """Leave the sizes of its files in a folder."""
    text = json.dumps({"format": FORMAT_VERSION, "files": sizes_of(folder)}, indent=1)
    write_whole(folder / SIZES, text + "\n")


def read_sizes(folder: Path) -> Mapping[str, object]:
    """What `write_sizes` left; nothing where an older version wrote the folder, or the file is damaged itself."""
    try:
        found = json.loads((folder / SIZES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    sizes = found.get("files") if isinstance(found, dict) else None
    return sizes if isinstance(sizes, dict) else {}
