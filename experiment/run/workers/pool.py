"""Runs the open work in this process or with a pool of workers. Work of a worker that dies is retried."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from experiment.errors import CannotWrite, ExperimentError, Inherited
from experiment.run.cell.context import Context
from experiment.run.cell.events import Event, Note, ReportEvent, Started
from experiment.run.grid.cells import ReferenceTask
from experiment.run.signals import raise_if_stopped
from experiment.run.workers.queue import Queue, Work

SECONDS_BETWEEN_TRIES = 1.0  # for work that another process holds
SECONDS_TO_SAVE = 60.0  # for workers that are asked to stop
MAX_DEATHS = 2  # at one cell

Contexts = Sequence[Context]
Listener = Callable[[Work, Event], None]


@dataclass(frozen=True)
class WorkerLost:
    """A worker did not finish its work, through no fault of a cell. If `fatal`, another worker could not either."""

    reason: str
    fatal: bool = False


class Pool(Protocol):
    """Workers on this machine or a cluster, each of which does one piece of work at a time."""

    @property
    def working(self) -> bool:
        """Whether any worker is working."""

    @property
    def idle(self) -> bool:
        """Whether another piece of work can be started."""

    @property
    def size(self) -> int:
        """Number of pieces of work at a time."""

    def start(self, work: Work) -> None:
        """Start a piece of work."""

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        """New messages: events, and at the end of work True (done), False (another process holds it) or WorkerLost."""

    def let_save(self) -> None:
        """Ask all workers to stop, and give them time to save their checkpoints."""

    def stop(self) -> None:
        """Kill the workers."""


def run_serially(queue: Queue, contexts: Contexts, listen: Listener) -> None:
    """Do all work in this process, in order."""
    compute = make_worker(contexts)
    held: set[str] = set()
    noted: set[str] = set()
    while queue:
        raise_if_stopped()
        work = queue.take(frozenset(held))
        if work is None:
            _note_waiting(queue, held, noted, listen)
            held.clear()
            time.sleep(SECONDS_BETWEEN_TRIES)
        elif _compute_here(compute, work, listen):
            queue.finished(work)
        else:
            held.add(work.name)
            queue.put_back(work)


def run_in_pool(pool: Pool, queue: Queue, contexts: Contexts, listen: Listener) -> None:
    """Do all work with a pool, which is stopped at the end."""
    held: dict[str, float] = {}  # name of work that another process holds -> when it was tried
    noted: set[str] = set()
    deaths = _Deaths(contexts)
    try:
        while queue or pool.working:
            raise_if_stopped()
            now = time.monotonic()
            recent = frozenset(name for name, since in held.items() if now - since < SECONDS_BETWEEN_TRIES)
            while pool.idle and (work := queue.take(recent, pool.size)) is not None:
                pool.start(work)
            if not pool.working:
                _note_waiting(queue, held, noted, listen)
            for work, message in pool.receive(timeout=SECONDS_BETWEEN_TRIES):
                if isinstance(message, WorkerLost):
                    rest = deaths.remaining_work(work, message, listen)
                    if rest is None:
                        queue.finished(work)
                    else:
                        queue.put_back(rest)
                elif message is True:
                    queue.finished(work)
                elif message is False:
                    held[work.name] = time.monotonic()
                    queue.put_back(work)
                else:
                    deaths.note(work, message)
                    listen(work, message)
    except (KeyboardInterrupt, CannotWrite):  # a full disk of one worker does not lose the training of the others
        pool.let_save()
        while pool.working and (messages := pool.receive(timeout=0.0)):  # of cells that ended meanwhile
            for work, message in messages:
                if isinstance(message, Event):
                    listen(work, message)
        raise
    finally:
        pool.stop()


def make_worker(contexts: Contexts) -> Callable[[Work, ReportEvent], bool]:
    """A function that does a piece of work, and returns False if another process holds it.

    Torch is imported here, so that planning does not need it.
    """
    from experiment.run.cell.chain import run_chain, run_reference
    from experiment.training.processor import use_threads

    def compute(work: Work, listen: ReportEvent) -> bool:
        def report(event: Event) -> None:
            raise_if_stopped()
            listen(event)

        context, task = contexts[work.experiment], work.task
        use_threads(context.threads)  # a setting of the process; experiments may differ in it
        with context.store.try_lock(work.lock) as held:
            if not held:
                return False
            if isinstance(task, ReferenceTask):
                run_reference(task, context, report)
                return True
            return run_chain(task, context, report)

    return compute


class _ListenerFailed(BaseException):
    """An error while progress was shown. It is not an Exception, so that it is not taken for the failure of a cell."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _compute_here(compute: Callable[[Work, ReportEvent], bool], work: Work, listen: Listener) -> bool:
    def report(event: Event) -> None:
        try:
            listen(work, event)
        except Exception as error:
            raise _ListenerFailed(error) from error

    try:
        return compute(work, report)
    except _ListenerFailed as failure:
        raise failure.error from None


def _note_waiting(queue: Queue, held: Collection[str], noted: set[str], listen: Listener) -> None:
    """Note, once per piece of work, that the rest of the work waits for other processes."""
    work = next((work for work in queue.waiting if work.name in held), None)
    if work is not None and work.name not in noted:
        noted.add(work.name)
        listen(
            work,
            Note(f"waiting for another process, which computes {work.cells[0].label} of network {work.cells[0].net}"),
        )


@dataclass
class _Deaths:
    """Counts the deaths of workers at each cell, and gives up a cell after `MAX_DEATHS`."""

    contexts: Contexts
    cell_of: dict[str, str] = field(default_factory=dict)  # name of the work -> key of the cell under way
    counts: Counter[tuple[int, str]] = field(default_factory=Counter)

    def note(self, work: Work, event: Event) -> None:
        """Remember which cell a worker computes."""
        if isinstance(event, Started):
            self.cell_of[work.name] = event.key

    def remaining_work(self, work: Work, lost: WorkerLost, listen: Listener) -> Work | None:
        """The work that remains after the death of its worker: all of it, or all but a cell that is given up.

        Raises: CannotWrite: the death is fatal.
        """
        if lost.fatal:
            raise CannotWrite(lost.reason)
        key = self.cell_of.pop(work.name, "")
        place = (work.experiment, key or work.name)
        self.counts[place] += 1
        if self.counts[place] < MAX_DEATHS:
            return work
        with self.contexts[work.experiment].store.try_lock(work.lock) as held:
            return self._give_up(work, key, lost.reason, lambda event: listen(work, event)) if held else work

    def _give_up(self, work: Work, key: str, reason: str, report: ReportEvent) -> Work | None:
        """Store as failed the cell at which the worker died, or all cells if it died before the first."""
        from experiment.run.cell.chain import store_failures

        context, locked = self.contexts[work.experiment], work.lock is not None
        error = ExperimentError(f"tried {MAX_DEATHS} times: {reason}")
        lost = [cell for cell in work.cells if cell.key == key] or list(work.cells)
        rest = [cell for cell in work.cells if cell not in lost]
        left = store_failures(lost, error, context, report, locked=locked)
        if locked and rest:  # a cascade: the next cell starts from the lost one
            error = Inherited(f"the previous cell of the cascade failed ({error})", key)
            left += store_failures(rest, error, context, report, locked=locked)
        else:
            left += rest
        return work.of(tuple(left)) if left else None
