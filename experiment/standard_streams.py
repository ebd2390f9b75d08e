"""Standard streams that exist and accept every character, and log lines on them."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from experiment.escaping import one_line


def require_streams() -> None:
    """Make sure that all three standard streams exist and accept every character.

    If one was closed (`2>&-`), the next file to be opened would get its number, and the output with it.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def without_stdout() -> Iterator[None]:
    """Discard what is printed, by libraries in C too."""
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere:
        own = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(own, 1)
            os.close(own)


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))


def log_to_stderr(level: int) -> None:
    """Print log messages from `level` on, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
