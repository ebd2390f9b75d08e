"""Scripts that also run cell by cell in a notebook: show plots inline, and end with an error, not with the kernel."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from experiment.errors import ExperimentError
from experiment.escaping import say


def in_notebook() -> bool:
    """Whether this code runs in a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def show_pictures(paths: Iterable[Path]) -> None:
    """Show PNG files below the running cell; does nothing outside a notebook."""
    if not in_notebook():
        return
    display = importlib.import_module("IPython.display")  # not a dependency: only notebooks need it
    for path in paths:
        display.display(display.Image(filename=str(path)))


def stop(text: str) -> NoReturn:
    """End a script with a message and exit status 2; in a notebook, raise an error, which keeps the kernel."""
    if in_notebook():
        raise ExperimentError(text)
    for line in text.splitlines():
        say(line, sys.stderr)
    sys.exit(2)
