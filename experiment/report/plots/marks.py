"""What artists of a figure show: a label, and the cells behind points. matplotlib keeps it, as JSON, in their `gid`."""

import json
from collections.abc import Iterable
from typing import Any

from experiment import escaping


def mark(artist: Any, label: str, points: Iterable[str] = ()) -> Any:
    """Write down what an artist shows, and return the artist.

    Args:
        label: its label; an entry of a legend in report.html hides all artists of its label.
        points: of a curve, for every point the name of its cell and, on further lines, what the axes do not show.
    """
    artist.set_gid(escaping.json_text([escaping.lines(text) for text in (label, *points)]))
    return artist


def read_mark(gid: str | None) -> list[str]:
    """The label in a `gid` and the texts of points; an empty list if there is no mark."""
    return [str(text) for text in json.loads(gid)] if gid is not None and gid.startswith("[") else []
