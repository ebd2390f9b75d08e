"""What is shown while work runs: finished cells on stdout; on stderr a bar, or in log files what takes long."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm

from experiment.escaping import one_line
from experiment.run.cell.events import Advanced, Busy, CellDone, EpochDone, Event, Note, Started
from experiment.run.workers.queue import Work

SECONDS_OF_SILENCE = 30.0  # of an analysis, after which a log file tells of it; doubled every time


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar without tqdm's own thread, which would get signals in the place of this one, and is in the way of forks."""

    monitor_interval = 0


class Show:
    """Turns events into a bar (on a terminal), a line a finished cell, and (in log files) lines about long analyses.

    Args:
        units: all the work there is, in epochs plus one a cell.
        verbosity: -1 errors only, 0 a line a finished cell, 1 a line an epoch too.
    """

    def __init__(self, units: float, cells: int, verbosity: int) -> None:
        self.verbosity, self.cells = verbosity, cells
        self.finished = self.failed = 0
        self.started = time.monotonic()
        self._quiet: dict[str, tuple[float, float]] = {}  # name -> since when it says nothing new, and how long it may
        self._bar = _Bar(
            total=round(units, 1), unit="epoch", disable=not sys.stderr.isatty() or verbosity < 0, dynamic_ncols=True,
            smoothing=0.05, miniters=0, bar_format="{percentage:3.0f}%|{bar:20}| {elapsed} < {remaining}{postfix}",
        )  # fmt: skip

    def __call__(self, work: Work, event: Event) -> None:
        if isinstance(event, Started | EpochDone | CellDone):
            self._quiet.pop(event.name, None)
        if isinstance(event, Advanced):
            self._bar.update(min(event.units, max(0.0, (self._bar.total or 0) - self._bar.n)))
        elif isinstance(event, Started):
            self._bar.set_postfix_str(self._count(event.name))
        elif isinstance(event, Busy):
            self._bar.set_postfix_str(self._count(f"{event.name}: {event.text}"))
            if self._bar.disable and self.verbosity >= 0:
                self._log(event)
        elif isinstance(event, EpochDone):
            accuracy = "" if event.valid_top1 is None else f", validation top-1 {event.valid_top1:.2%}"
            loss = "" if math.isnan(event.loss) else f"loss {event.loss:.4f}"  # of compression before any learning
            line = f"{event.name} epoch {event.epoch + 1}/{event.num_epochs}: {loss}{accuracy}".replace(": , ", ": ")
            self._bar.set_postfix_str(self._count(line))
            if self.verbosity > 0:
                self.say(line)
        elif isinstance(event, CellDone):
            self._finish(event)
        elif isinstance(event, Note) and self.verbosity >= 0:
            self.say(event.text)

    def _log(self, event: Busy) -> None:
        now = time.monotonic()
        since, bearable = self._quiet.setdefault(event.name, (now, SECONDS_OF_SILENCE))
        if now - since >= bearable:
            self._quiet[event.name] = now, 2 * bearable
            self.say(f"{event.name}: {event.text}")

    def say(self, text: str, *, result: bool = False) -> None:
        """A line above the bar."""
        stream = sys.stdout if result else sys.stderr
        self._bar.write(one_line(text), file=stream)
        stream.flush()  # or lines would come late in a log file, and twice where a process with some unwritten forks

    def close(self) -> None:
        """End the bar: at 100 % where all cells are finished, for a resumed training has fewer epochs than planned."""
        if self.finished == self.cells:
            self._bar.update((self._bar.total or 0) - self._bar.n)
        self._bar.close()

    def _count(self, text: str) -> str:
        return one_line(f"[{self.finished}/{self.cells}] {text}")

    def _finish(self, event: CellDone) -> None:
        self.finished += 1
        self._bar.set_postfix_str(self._count(event.name))
        if event.status == "failed":
            self.failed += 1
            self.say(f"{self._count(event.name)}: FAILED: {event.error}")
        elif self.verbosity >= 0 and event.status == "infeasible":
            self.say(f"{self._count(event.name)}: infeasible: {event.error}", result=True)
        elif self.verbosity >= 0:
            kept = "" if event.keep_parameters is None else f", {event.keep_parameters:.1%} of the parameters"
            self.say(f"{self._count(event.name)}: top-1 {event.top1:.2%}{kept}", result=True)
