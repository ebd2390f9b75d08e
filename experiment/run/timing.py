"""What one call of the command spent its time on: told at its end, and written to timing.json beside the results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from experiment.clock import Clock
from experiment.files import write_whole
from experiment.run.keys import FORMAT_VERSION

USEFUL = ("training", "test")  # what nobody could do without; the rest is the program's own
IDLE = "idle"
TOLD_FROM = 0.005  # smaller shares are in the file only


class Timing:
    """Wall time by what it was spent on; that of several workers as the mean over them, so that the parts add up to it.

    Args:
        clock: counts the parts of this process, from its creation on.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.workers = 1
        self._started = time.perf_counter() - clock.total
        self._seconds: dict[str, float] = {}

    def add(self, seconds: Mapping[str, float], workers: int = 1) -> None:
        """Count what one of `workers` workers tells of itself."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value / workers

    def hire(self, workers: int) -> None:
        """From here on workers' processes tell what they do, and what this one does meanwhile is no time of its own."""
        self.add(self.clock.take())
        self.workers = workers

    def dismiss(self) -> None:
        """The workers are gone."""
        self.clock.take()

    def breakdown(self) -> dict[str, float]:
        """Name -> share of the wall time, largest first; what nobody counted is `idle`."""
        self.add(self.clock.take())
        wall = time.perf_counter() - self._started
        seconds = self._seconds | {IDLE: max(0.0, wall - sum(self._seconds.values()))}
        return {name: seconds[name] / wall for name in sorted(seconds, key=lambda n: -seconds[n])}

    def write(self, folder: Path) -> None:
        """Leave timing.json in an experiment's folder."""
        shares = self.breakdown()
        wall = time.perf_counter() - self._started
        content = {
            "format": FORMAT_VERSION,
            "wall_seconds": round(wall, 2),
            "workers": self.workers,
            "share_of_training_and_test": round(sum(shares.get(name, 0.0) for name in USEFUL), 4),
            "seconds": {name: round(share * wall, 2) for name, share in shares.items()},
        }
        write_whole(folder / "timing.json", json.dumps(content, indent=1) + "\n")

    def __str__(self) -> str:
        shares = self.breakdown()
        useful = sum(shares.get(name, 0.0) for name in USEFUL)
        rest = [f"{name} {share:.0%}" for name, share in shares.items() if name not in USEFUL and share >= TOLD_FROM]
        return f"{useful:.0%} of {_duration(time.perf_counter() - self._started)} training and testing; " + ", ".join(
            rest
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
