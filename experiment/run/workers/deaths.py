"""What becomes of the work of a process that dies: once more, then the cell at which it died is given up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from experiment.errors import CannotWrite, ExperimentError, Inherited
from experiment.run.cell.events import Event, Report, Started
from experiment.run.disk.store import Store
from experiment.run.grid.plan import ReferenceTask
from experiment.run.workers.queue import Work

if TYPE_CHECKING:
    from experiment.run.cell.reference import Context
    from experiment.run.workers.setup import Setup

MOST_DEATHS = 2


@dataclass(frozen=True)
class Lost:
    """A worker did not finish its work, for a reason that no cell could be given; `fatal`: nor would another."""

    reason: str
    fatal: bool = False


@dataclass
class Deaths:
    """How often workers died at which cell, and what becomes of their work."""

    setup: Setup
    under_way: dict[str, str] = field(default_factory=dict)  # name of the work -> key of its cell
    counts: dict[tuple[int, str], int] = field(default_factory=dict)

    def note(self, work: Work, event: Event) -> None:
        """Take down which cell a worker is at."""
        if isinstance(event, Started):
            self.under_way[work.name] = event.key

    def left_of(self, work: Work, lost: Lost, report: Report) -> Work | None:
        """What is still to be done: all of it once more, or what there is beside the cell that is given up.

        Raises: CannotWrite: there is no use in going on.
        """
        if lost.fatal:
            raise CannotWrite(lost.reason)
        key = self.under_way.pop(work.name, "")
        place = (work.experiment, key or work.name)
        self.counts[place] = self.counts.get(place, 0) + 1
        if self.counts[place] < MOST_DEATHS:
            return work
        return give_up(work, key, self.setup, lost.reason, report)


def give_up(work: Work, key: str, setup: Setup, reason: str, report: Report) -> Work | None:
    """Store as failed what could not be done although it was tried often enough; returns what is still to be done.

    Where another process has taken it up, this is all of it.

    Args:
        key: the cell at which it ended; what else there is of a chain goes on, but for a cascade, which builds on it.
            "": before any cell.
    """
    from experiment.run.cell.data import Data
    from experiment.run.cell.reference import Context

    site = setup.sites[work.experiment]
    data = Data(site.directories.datasets, "cpu")
    context = Context(Store(site.folder), site.directories, setup.machine, data, setup.retry_failed)
    error = ExperimentError(f"tried {MOST_DEATHS} times: {reason}")
    with context.store.try_lock(work.lock) as held:
        return _store(work, key, error, context, report) if held else work


def _store(work: Work, key: str, error: ExperimentError, context: Context, report: Report) -> Work | None:
    from experiment.run.cell.chain import store_abandoned

    task = work.task
    if isinstance(task, ReferenceTask) or not key:
        left = store_abandoned(task, error, context, report)
    else:
        broken = replace(task, cells=tuple(c for c in task.cells if c.key == key))
        left = store_abandoned(broken, error, context, report)
        others = replace(task, cells=tuple(c for c in task.cells if c.key != key))
        if task.in_order:  # what follows starts from it
            left += store_abandoned(
                others, Inherited(f"the cell before it in the cascade failed ({error})", key), context, report
            )
        else:
            left += others.cells
    return work.of(tuple(left)) if left else None
