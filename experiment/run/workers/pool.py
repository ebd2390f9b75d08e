"""How work is done, in this process or by a pool of workers: one that dies costs one retry, not the sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from experiment.errors import CannotWrite
from experiment.files import SECONDS_BEFORE_NOTE
from experiment.run.cell.events import Event, Note, Report
from experiment.run.disk.store import Store
from experiment.run.grid.plan import Chain, ReferenceTask
from experiment.run.machine import reading_processes
from experiment.run.signals import raise_if_told
from experiment.run.workers.deaths import Deaths, Lost
from experiment.run.workers.queue import Queue, Work
from experiment.run.workers.setup import Setup

SECONDS_BETWEEN_TRIES = 1.0  # for work that another process holds
SECONDS_TO_SAVE = 60.0  # for workers that are told to stop

Listener = Callable[[Work, Event], None]


class Pool(Protocol):
    """Workers, wherever they are: each does one piece of work at a time and tells of it."""

    @property
    def working(self) -> bool:
        """Whether any work is under way."""

    @property
    def idle(self) -> bool:
        """Whether there is room for another piece of work."""

    @property
    def size(self) -> int:
        """How many pieces of work it does at a time."""

    def start(self, work: Work) -> None:
        """Have a piece of work done."""

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        """What has been told since the last call: events, then True (done), False (held by others) or Lost."""

    def let_save(self) -> None:
        """Tell all workers to stop, and give them the time to save where their trainings are."""

    def stop(self) -> None:
        """End the workers, whatever they are doing."""


def run_serially(queue: Queue, setup: Setup, listen: Listener) -> None:
    """Do all work in this process, in order."""
    do = make_worker(setup)
    busy: set[str] = set()
    waiting = _Waiting(listen)
    try:
        while queue:
            raise_if_told()
            work = queue.take(frozenset(busy))
            if work is None:
                waiting.for_others(queue, busy)
                busy.clear()
                time.sleep(SECONDS_BETWEEN_TRIES)
            elif do(work, _guarded(listen, work)):
                waiting.ended()
                queue.finished(work)
            else:
                busy.add(work.name)
                queue.put_back(work)
    except _ListenerFailed as failure:
        raise failure.error from None


def run_in_pool(pool: Pool, queue: Queue, setup: Setup, listen: Listener) -> None:
    """Do all work by the workers of a pool; a worker that dies costs one retry, and the pool is stopped at the end."""
    busy: dict[str, float] = {}
    waiting = _Waiting(listen)
    deaths = Deaths(setup)
    try:
        while queue or pool.working:
            raise_if_told()
            now = time.monotonic()
            held = frozenset(name for name, since in busy.items() if now - since < SECONDS_BETWEEN_TRIES)
            while pool.idle and (work := queue.take(held, pool.size)) is not None:
                pool.start(work)
            if not pool.working:
                waiting.for_others(queue, busy)
            for work, message in pool.receive(timeout=SECONDS_BETWEEN_TRIES):
                if isinstance(message, Lost):
                    rest = deaths.left_of(work, message, lambda event, w=work: listen(w, event))  # type: ignore[misc]
                    if rest is None:
                        queue.finished(work)
                    else:
                        queue.put_back(rest)
                elif message is True:
                    waiting.ended()
                    queue.finished(work)
                elif message is False:
                    busy[work.name] = time.monotonic()
                    queue.put_back(work)
                else:
                    deaths.note(work, message)
                    listen(work, message)
    except (KeyboardInterrupt, CannotWrite):  # one worker whose disk is full need not cost the others their training
        pool.let_save()
        raise
    finally:
        pool.stop()


def make_worker(setup: Setup) -> Callable[[Work, Report], bool]:
    """A function that does one piece of work, and returns False where another process is at it.

    Torch is imported here, so that planning needs none of it.
    """
    import torch

    from experiment.run.cell.chain import run_chain, run_reference
    from experiment.run.cell.data import Data
    from experiment.run.cell.reference import Context

    readers = reading_processes(setup.cells, setup.most_threads)
    folders = {s.directories.datasets for s in setup.sites}
    data = {folder: Data(folder, setup.machine.device, readers=readers) for folder in folders}
    contexts = [
        Context(
            Store(s.folder),
            s.directories,
            setup.machine,
            data[s.directories.datasets],
            setup.retry_failed,
            setup.crew,
        )
        for s in setup.sites
    ]

    def do(work: Work, listen: Report) -> bool:
        def report(event: Event) -> None:
            raise_if_told()
            listen(event)

        context = contexts[work.experiment]
        torch.set_num_threads(setup.sites[work.experiment].threads)
        with context.store.try_lock(work.lock) as held:
            done = held
            if held and isinstance(work.task, ReferenceTask):
                run_reference(work.task, context, report)
            elif held and isinstance(work.task, Chain):
                done = run_chain(work.task, context, report)
        return done

    return do


class _Waiting:
    """Tells, once and only when it takes long, that all that is left is held by other processes."""

    def __init__(self, listen: Listener) -> None:
        self._listen = listen
        self._since: float | None = None
        self._told = False

    def for_others(self, queue: Queue, busy: Collection[str]) -> None:
        """There is nothing to do but what other processes hold, and what needs that."""
        work = next((work for work in queue.waiting if work.name in busy), None)
        if work is None:
            return
        now = time.monotonic()
        self._since = self._since or now
        if not self._told and now - self._since > SECONDS_BEFORE_NOTE:
            self._told = True
            self._listen(work, Note(f"waiting for another process that is at {work.cells[0].folder}"))

    def ended(self) -> None:
        """Something was done here."""
        self._since, self._told = None, False


class _ListenerFailed(BaseException):
    """Something broke while progress was shown: no fault of the cell, so not an Exception that it could catch."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _guarded(listen: Listener, work: Work) -> Report:
    def report(event: Event) -> None:
        try:
            listen(work, event)
        except Exception as error:
            raise _ListenerFailed(error) from error

    return report
