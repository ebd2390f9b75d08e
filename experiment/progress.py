"""Progress of long computations, which count their steps; the caller decides how to show them.

for layer in progress(layers, "singular values"):
    ...

Nothing is shown by default; inside `showing(bars())` there are bars, on a terminal and in notebooks.
"""

import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")
SECONDS_OF_SILENCE = 2.0  # shorter work is not shown
SECONDS_BETWEEN_DRAWINGS = 0.5
SECONDS_TO_HINT = 10.0  # then the hint is shown


class Shown(Protocol):
    """The display of one piece of work."""

    def advance(self) -> None:
        """Count one more step."""

    def close(self) -> None:
        """The work has ended, finished or not."""


Listener = Callable[[str, int, str], Shown]  # description, number of steps, hint
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def progress(items: Collection[T], description: str, hint: str = "") -> Iterator[T]:
    """Yield the items, and show how many are done.

    Args:
        description: what is done with them, in a few words.
        hint: a faster alternative, shown after some time.
    """
    listener = _listener.get()
    if listener is None or not items:
        yield from items
        return
    part = listener(description, len(items), hint)
    try:
        for item in items:
            yield item
            part.advance()
    finally:
        part.close()


@contextmanager
def working(description: str) -> Iterator[None]:
    """Show work without steps."""
    for _ in progress((None,), description):
        yield


@contextmanager
def showing(listener: Listener | None) -> Iterator[None]:
    """Show all work inside by `listener`; None: show nothing."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def bars(wanted: bool = True) -> Listener | None:
    """Bars if a person is likely to watch, otherwise nothing."""
    return Bar if wanted and is_watched() else None


def is_watched() -> bool:
    """Whether stderr is a terminal, or this is a notebook."""
    return "ipykernel" in sys.modules or sys.stderr.isatty()


class Bar:
    """A bar of tqdm, shown after two seconds and removed at the end.

    It is drawn in a thread, so that it also moves during a long step.
    """

    def __init__(self, description: str, total: int, hint: str = "") -> None:
        self._description, self._total, self._hint = description, total, hint
        self._done, self._lock, self._ended = 0, threading.Lock(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def advance(self) -> None:
        """Count one more step."""
        self._done += 1

    def close(self) -> None:
        """Remove the bar."""
        self._ended.set()
        with self._lock:  # wait until it is removed
            pass

    def _watch(self) -> None:
        if self._ended.wait(SECONDS_OF_SILENCE):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook may lack widgets
            from tqdm.auto import tqdm
        form = None if self._total > 1 else "{desc}: {elapsed}{postfix}"
        with self._lock, tqdm(total=self._total, desc=self._description, leave=False, bar_format=form) as bar:
            until_hint = SECONDS_TO_HINT - SECONDS_OF_SILENCE
            while True:
                bar.n = self._done
                if until_hint <= 0:
                    bar.set_postfix_str(self._hint, refresh=False)
                bar.refresh()
                if self._ended.wait(SECONDS_BETWEEN_DRAWINGS):
                    return
                until_hint -= SECONDS_BETWEEN_DRAWINGS


class ProgressText:
    """Progress as text for `say`, after two seconds, at most once per second."""

    def __init__(self, say: Callable[[str], None], description: str, total: int, hint: str = "") -> None:
        self._say, self._description, self._total, self._hint = say, description, total, hint
        self._done, self._started = 0, time.monotonic()
        self._next = self._started + SECONDS_OF_SILENCE

    def advance(self) -> None:
        """Count one more step."""
        self._done += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 1.0
        hint = f" ({self._hint})" if self._hint and now - self._started > SECONDS_TO_HINT else ""
        self._say(f"{self._description} {self._done}/{self._total}{hint}")

    def close(self) -> None:
        """No final text."""
