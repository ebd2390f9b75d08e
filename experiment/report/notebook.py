"""What scripts do otherwise when they run cell by cell in a notebook: show pictures, and end with an error."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from experiment.errors import ExperimentError


def in_notebook() -> bool:
    """Whether this code runs in a notebook's kernel."""
    return "ipykernel" in sys.modules


def show_pictures(paths: Iterable[Path]) -> None:
    """Show PNG files below the cell that runs; nothing outside notebooks."""
    if not in_notebook():
        return
    shown = importlib.import_module("IPython.display")  # which a notebook has, and a program need not
    for path in paths:
        shown.display(shown.Image(filename=str(path)))


def stop(text: str) -> NoReturn:
    """End a script: a program with the text and status 1, a notebook's cell with an error, so that its kernel stays."""
    if in_notebook():
        raise ExperimentError(text)
    sys.exit(text)
