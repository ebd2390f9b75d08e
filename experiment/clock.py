"""Where the time goes: wall time by what it was spent on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Adds up seconds by the name of what is done in them.

    Time within an inner part counts for that alone, so the parts never add up to more than has passed. On a GPU the
    host's time is measured, which waits for the device wherever a value is fetched from it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = self._born = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what passes inside for `name`."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def over(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, the time to make each counted for `name`."""
        iterator = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def total(self) -> float:
        """Seconds since this clock was made."""
        return time.perf_counter() - self._born

    def add(self, name: str, seconds: float) -> None:
        """Count for `name` what passed before this clock was there."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Name -> seconds counted since this was last called."""
        self._turn()
        taken, self._seconds = self._seconds, {}
        return taken

    def _turn(self) -> None:
        """Give what has passed since the last turn to the innermost part."""
        now = time.perf_counter()
        if self._open:
            self.add(self._open[-1], now - self._since)
        self._since = now
