"""What one call of the command spent its time on: told at its end, and written to timing.json beside the results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from experiment.clock import Clock
from experiment.escaping import json_text
from experiment.files import write_whole
from experiment.run.grid.keys import FORMAT_VERSION

USEFUL = ("training", "test")  # what nobody could do without; the rest is the program's own
IDLE = "idle"
TOLD_FROM = 0.005  # smaller shares are in the file only


class Timing:
    """Wall time by what it was spent on; that of several workers as the mean over them, so that the parts add up to it.

    Where nobody knows how many workers there are, as on a cluster, the whole is what all of them tell.

    Args:
        clock: counts the parts of this process, from its creation on.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.workers: int | None = 1
        self._started = time.perf_counter() - clock.total
        self._seconds: dict[str, float] = {}

    def add(self, seconds: Mapping[str, float], workers: int = 1) -> None:
        """Count what one of `workers` workers tells of itself."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value / workers

    def hire(self, workers: int | None) -> None:
        """From here on workers tell what they do, and what this process does meanwhile is no time of its own.

        Args:
            workers: how many, None if that is not known.
        """
        self.add(self.clock.take())
        self.workers = workers

    def dismiss(self) -> None:
        """The workers are gone."""
        self.clock.take()

    def breakdown(self) -> dict[str, float]:
        """Name -> share of the wall time, largest first; what nobody counted is `idle`."""
        self.add(self.clock.take())
        seconds = dict(self._seconds)
        if self.workers is not None:
            seconds[IDLE] = max(0.0, self._wall - sum(seconds.values()))
        whole = sum(seconds.values())
        return {name: seconds[name] / whole for name in sorted(seconds, key=lambda n: -seconds[n])}

    @property
    def _wall(self) -> float:
        return time.perf_counter() - self._started

    def write(self, folder: Path) -> None:
        """Leave timing.json in an experiment's folder."""
        shares = self.breakdown()
        whole = self._wall if self.workers is not None else sum(self._seconds.values())
        content = {
            "format": FORMAT_VERSION,
            "wall_seconds": round(self._wall, 2),
            "workers": self.workers,
            "share_of_training_and_test": round(sum(shares.get(name, 0.0) for name in USEFUL), 4),
            "seconds": {name: round(share * whole, 2) for name, share in shares.items()},
        }
        write_whole(folder / "timing.json", json_text(content, indent=1) + "\n")

    def __str__(self) -> str:
        shares = self.breakdown()
        useful = sum(shares.get(name, 0.0) for name in USEFUL)
        rest = [f"{name} {share:.0%}" for name, share in shares.items() if name not in USEFUL and share >= TOLD_FROM]
        return f"{useful:.0%} of {_duration(self._wall)} training and testing; " + ", ".join(rest)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
