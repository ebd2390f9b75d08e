"""The output while work runs: finished cells, a progress bar on terminals, and long analyses in log files."""

import math
import sys
import time

from tqdm import tqdm

from experiment.escaping import one_line
from experiment.run.cell.events import Advanced, Busy, CellDone, EpochDone, Event, Note, Started, result_in_words

SECONDS_OF_SILENCE = 30.0  # of an analysis, after which a log file gets a line; doubled every time


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar without tqdm's monitor thread, which would receive signals, and interferes with forks."""

    monitor_interval = 0


class ProgressBar:
    """Shows events: results on stdout, everything else on stderr.

    Args:
        units: the amount of work, in epochs plus one per cell.
        verbosity: -1 for errors only, 0 for one line per finished cell, 1 for one line per epoch too.
    """

    def __init__(self, units: float, cells: int, verbosity: int) -> None:
        self.verbosity, self.cells, self.finished = verbosity, cells, 0
        self._silence: dict[str, tuple[float, float]] = {}  # name -> start, and how long it may last
        self._bar = _Bar(
            total=round(units, 1), unit="epoch", disable=not sys.stderr.isatty() or verbosity < 0, dynamic_ncols=True,
            smoothing=0.05, miniters=0, bar_format="{percentage:3.0f}%|{bar:20}| {elapsed} < {remaining}{postfix}",
        )  # fmt: skip

    def show(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Started | EpochDone | CellDone):
            self._silence.pop(event.name, None)
        if isinstance(event, Advanced):
            self._advance(event.units)
        elif isinstance(event, Started):
            self._set_text(event.name)
        elif isinstance(event, Busy):
            self._set_text(f"{event.name}: {event.text}")
            if self._bar.disable and self.verbosity >= 0:
                self._log(event)
        elif isinstance(event, EpochDone):
            self._show_epoch(event)
        elif isinstance(event, CellDone):
            self._show_cell(event)
        elif isinstance(event, Note) and self.verbosity >= 0:
            self.say(event.text)

    def say(self, text: str, *, result: bool = False) -> None:
        """Write a line above the bar."""
        stream = sys.stdout if result else sys.stderr
        self._bar.write(one_line(text), file=stream)
        stream.flush()  # lines in a log file are up to date, and are not written twice after a fork

    def close(self) -> None:
        """End the bar, at 100 % if all cells are finished: a resumed training has fewer epochs than planned."""
        if self.finished == self.cells:
            self._advance(math.inf)
        self._bar.close()

    def _advance(self, units: float) -> None:
        self._bar.update(min(units, max(0.0, (self._bar.total or 0) - self._bar.n)))

    def _set_text(self, text: str) -> None:
        self._bar.set_postfix_str(self._count(text))

    def _count(self, text: str) -> str:
        return one_line(f"[{self.finished}/{self.cells}] {text}")

    def _log(self, event: Busy) -> None:
        now = time.monotonic()
        since, longest = self._silence.setdefault(event.name, (now, SECONDS_OF_SILENCE))
        if now - since >= longest:
            self._silence[event.name] = now, 2 * longest
            self.say(f"{event.name}: {event.text}")

    def _show_epoch(self, event: EpochDone) -> None:
        figures = [] if math.isnan(event.loss) else [f"loss {event.loss:.4f}"]  # mode lc has none before it learns
        if event.valid is not None:
            figures.append(f"validation {event.valid}")
        line = f"{event.name} epoch {event.epoch + 1}/{event.num_epochs}: {', '.join(figures)}"
        self._set_text(line)
        if self.verbosity > 0:
            self.say(line)

    def _show_cell(self, event: CellDone) -> None:
        self.finished += 1
        self._set_text(event.name)
        line = f"{self._count(event.name)}: {result_in_words(event)}"
        if event.status == "failed":
            self.say(line)
        elif self.verbosity >= 0:
            self.say(line, result=True)
