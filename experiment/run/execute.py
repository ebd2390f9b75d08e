"""Where work runs: in this process, or in several; a worker that dies costs one retry, not the sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from experiment.clock import Clock
from experiment.errors import ExperimentError
from experiment.run.events import Event, Report, Timed
from experiment.run.machine import visible_gpus
from experiment.run.plan import Machine, ReferenceTask
from experiment.run.resources import Resources
from experiment.run.schedule import Queue, Work
from experiment.run.store import Directories, Store

if TYPE_CHECKING:  # torch comes with it
    from experiment.run.crew import Crew

SECONDS_BETWEEN_TRIES = 1.0  # for work that another process holds
MOST_DEATHS = 2


@dataclass(frozen=True)
class Site:
    """Where one experiment lies, with how many threads its cells are computed, and what each takes up of a machine."""

    folder: Path
    directories: Directories
    threads: int
    resources: Resources


@dataclass(frozen=True)
class Setup:
    """What a worker must know: the site of every experiment, the device to compute on, and who trains with it."""

    sites: tuple[Site, ...]
    machine: Machine
    retry_failed: bool
    crew: Crew | None = None

    @property
    def most_threads(self) -> int:
        return max(site.threads for site in self.sites)


Listener = Callable[[Work, Event], None]


class Pool(Protocol):
    """Workers, wherever they are: each does one piece of work at a time and tells of it."""

    @property
    def working(self) -> bool:
        """Whether any work is under way."""

    @property
    def idle(self) -> bool:
        """Whether there is room for another piece of work."""

    def start(self, work: Work) -> None:
        """Have a piece of work done."""

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        """What has been told since the last call: events, then True (done), False (held by others) or Lost."""

    def stop(self) -> None:
        """End the workers, whatever they are doing."""


def run_serially(queue: Queue, setup: Setup, listen: Listener, clock: Clock) -> None:
    """Do all work in this process, in order; `clock` counts what it takes."""
    with clock.part("start-up"):
        do = make_worker(setup, clock)
    busy: set[str] = set()
    try:
        while queue:
            work = queue.take(frozenset(busy))
            if work is None:
                busy.clear()
                time.sleep(SECONDS_BETWEEN_TRIES)
            elif do(work, _guarded(listen, work)):
                queue.finished(work)
            else:
                busy.add(work.name)
                queue.put_back(work)
    except _ListenerFailed as failure:
        raise failure.error from None


def run_in_processes(queue: Queue, setup: Setup, workers: int, listen: Listener) -> None:
    """Do all work in `workers` processes."""
    run_in_pool(_Processes(setup, workers), queue, setup, listen)


def run_in_pool(pool: Pool, queue: Queue, setup: Setup, listen: Listener) -> None:
    """Do all work by the workers of a pool; a worker that dies costs one retry, and the pool is stopped at the end."""
    busy: dict[str, float] = {}
    deaths: dict[str, int] = {}
    try:
        while queue or pool.working:
            now = time.monotonic()
            held = frozenset(name for name, since in busy.items() if now - since < SECONDS_BETWEEN_TRIES)
            while pool.idle and (work := queue.take(held)) is not None:
                pool.start(work)
            for work, message in pool.receive(timeout=SECONDS_BETWEEN_TRIES):
                if isinstance(message, Lost):
                    deaths[work.name] = deaths.get(work.name, 0) + 1
                    if deaths[work.name] < MOST_DEATHS:
                        queue.put_back(work)
                    else:
                        give_up(work, setup, message.reason, lambda event, w=work: listen(w, event))  # type: ignore[misc]
                        queue.finished(work)
                elif message is True:
                    queue.finished(work)
                elif message is False:
                    busy[work.name] = time.monotonic()
                    queue.put_back(work)
                else:
                    listen(work, message)
    finally:
        pool.stop()


def make_worker(setup: Setup, clock: Clock | None = None) -> Callable[[Work, Report], bool]:
    """A function that does one piece of work, and returns False where another process is at it.

    Torch is imported here, so that planning needs none of it.

    Args:
        clock: counts what the work takes by its parts, which are told after every piece.
    """
    import torch

    from experiment.run.data import Data
    from experiment.run.pipeline import run_chain, run_reference
    from experiment.run.reference import Context

    clock = clock or Clock()
    data = {
        folder: Data(folder, setup.machine.device, clock) for folder in {s.directories.datasets for s in setup.sites}
    }
    contexts = [
        Context(
            Store(s.folder),
            s.directories,
            setup.machine,
            data[s.directories.datasets],
            setup.retry_failed,
            setup.crew,
            clock,
        )
        for s in setup.sites
    ]

    def do(work: Work, report: Report) -> bool:
        context = contexts[work.experiment]
        torch.set_num_threads(setup.sites[work.experiment].threads)
        lock = FileLock(context.store.lock_file(work.lock))
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            return False
        with held, clock.part("other"):
            if isinstance(work.task, ReferenceTask):
                run_reference(work.task, context, report)
            else:
                run_chain(work.task, context, report)
        report(Timed(clock.take()))
        return True

    return do


def give_up(work: Work, setup: Setup, reason: str, report: Report) -> None:
    """Store as failed what a piece of work has left undone after it was tried often enough."""
    from experiment.run.data import Data
    from experiment.run.pipeline import store_abandoned
    from experiment.run.reference import Context

    site = setup.sites[work.experiment]
    data = Data(site.directories.datasets, "cpu")
    context = Context(Store(site.folder), site.directories, setup.machine, data, setup.retry_failed)
    store_abandoned(work.task, ExperimentError(f"tried {MOST_DEATHS} times: {reason}"), context, report)


@dataclass(frozen=True)
class Lost:
    """A worker did not finish its work, for a reason that no cell could be given."""

    reason: str


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


@dataclass
class _Member:
    process: BaseProcess
    connection: Connection
    work: Work | None = None


class _Processes:
    """Worker processes, each with a pipe; who dies is replaced."""

    def __init__(self, setup: Setup, size: int) -> None:
        self.setup, self.size = setup, size
        self.gpus = visible_gpus(setup.machine)
        self.hired = 0
        self.members: list[_Member] = []

    @property
    def working(self) -> bool:
        return any(m.work is not None for m in self.members)

    @property
    def idle(self) -> bool:
        return sum(m.work is not None for m in self.members) < self.size

    def start(self, work: Work) -> None:
        for member in [m for m in self.members if m.work is None]:
            try:
                member.connection.send(work)
            except OSError:  # it died idle
                self.members.remove(member)
                continue
            member.work = work
            return
        member = self._hire()
        member.work = work
        member.connection.send(work)

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        at_work = [m for m in self.members if m.work is not None]
        ready = set(wait([m.connection for m in at_work], timeout)) if at_work else set()
        if not at_work:
            time.sleep(timeout)
        told: list[tuple[Work, Any]] = []
        for member in at_work:
            if member.connection in ready:
                assert member.work is not None
                try:
                    message = member.connection.recv()
                except (EOFError, OSError):
                    message = Lost("its worker process died (killed, or out of memory)")
                    self.members.remove(member)
                told.append((member.work, message))
                if isinstance(message, bool | Lost):
                    member.work = None
        return told

    def stop(self) -> None:
        for member in self.members:
            member.process.kill()  # everything that counts is on the disk, whole
        for member in self.members:
            member.process.join()

    def _hire(self) -> _Member:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported, in the new process
            os.environ[name] = str(self.setup.most_threads)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[self.hired % len(self.gpus)]
        self.hired += 1
        process = context.Process(target=_work_for, args=(theirs, self.setup, time.monotonic()))
        process.start()
        theirs.close()
        member = _Member(process, ours)
        self.members.append(member)
        return member


def _work_for(connection: Connection, setup: Setup, hired: float) -> None:
    """The life of a worker: take work, do it, tell of it, until nobody is there to tell.

    Args:
        hired: the monotonic time at which its process was started.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    clock = Clock()
    do = make_worker(setup, clock)
    clock.add("start-up", time.monotonic() - hired)

    def tell(message: Event | bool | Lost) -> None:
        try:
            connection.send(message)
        except OSError:  # the parent is gone: end here, which is no fault of the cell
            raise SystemExit(1) from None

    while True:
        try:
            work = connection.recv()
        except (EOFError, OSError):
            return
        try:
            tell(do(work, tell))
        except Exception as error:  # what no cell could be given: a results folder that cannot be written, say
            tell(Lost(f"{type(error).__name__}: {error}"))
