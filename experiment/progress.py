"""How far long work is: whoever computes counts its steps, whoever called decides how they are shown.

for layer in progress(layers, "singular values"):
    ...

Nothing is shown unless somebody listens: `showing(bars())` shows bars on a terminal and in notebooks.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")
SECONDS_OF_SILENCE = 2.0  # shorter work shows nothing
SECONDS_BETWEEN_DRAWINGS = 0.5
SECONDS_TO_HINT = 10.0  # from here on a hint is worth reading


class Part(Protocol):
    """One piece of work under way."""

    def advance(self) -> None:
        """One more step is done."""

    def close(self) -> None:
        """The work has ended, finished or not."""


Listener = Callable[[str, int, str], Part]  # from what is done, the number of steps and a hint to a faster way
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def progress(items: Collection[T], description: str, hint: str = "") -> Iterator[T]:
    """The items one by one, while whoever listens is told how many are done.

    Args:
        description: what is done with them, in a few words.
        hint: how to be faster, for those who have waited long.
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
    """Inside is work whose steps nobody counts."""
    for _ in progress((None,), description):
        yield


@contextmanager
def showing(listener: Listener | None) -> Iterator[None]:
    """Inside, `listener` is told of all work; None: nobody is."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def bars(wanted: bool = True) -> Listener | None:
    """Bars where a person is likely to watch, else nothing."""
    return Bar if wanted and is_watched() else None


def is_watched() -> bool:
    """Whether errors and bars appear on a terminal or in a notebook."""
    return "ipykernel" in sys.modules or sys.stderr.isatty()


class Bar:
    """A bar of tqdm's that appears after two seconds and goes at the end.

    A thread of its own draws it, so that one long step is not silent either.
    """

    def __init__(self, description: str, total: int, hint: str = "") -> None:
        self._description, self._total, self._hint = description, total, hint
        self._done, self._lock, self._ended = 0, threading.Lock(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def advance(self) -> None:
        """One more step is done."""
        self._done += 1

    def close(self) -> None:
        """Take the bar away."""
        self._ended.set()
        with self._lock:  # until it is gone
            pass

    def _watch(self) -> None:
        if self._ended.wait(SECONDS_OF_SILENCE):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a notebook lacks widgets
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


class Spoken:
    """Steps told in words, for those who have their own place to show them: after two seconds, once a second."""

    def __init__(self, say: Callable[[str], None], description: str, total: int, hint: str = "") -> None:
        self._say, self._description, self._total, self._hint = say, description, total, hint
        self._done, self._started = 0, time.monotonic()
        self._next = self._started + SECONDS_OF_SILENCE

    def advance(self) -> None:
        """One more step is done."""
        self._done += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 1.0
        hint = f" ({self._hint})" if self._hint and now - self._started > SECONDS_TO_HINT else ""
        self._say(f"{self._description} {self._done}/{self._total}{hint}")

    def close(self) -> None:
        """Nothing is left to say."""
