"""Where work runs: in this process, or in several; a worker that dies costs one retry, not the sweep."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from experiment.clock import Clock
from experiment.errors import CannotWrite
from experiment.run.deaths import Deaths, Lost
from experiment.run.events import Event, Report, Timed
from experiment.run.interrupt import stop_when_told
from experiment.run.machine import visible_gpus
from experiment.run.plan import Machine, ReferenceTask
from experiment.run.schedule import Queue, Work
from experiment.run.store import Directories, Store

if TYPE_CHECKING:  # torch comes with it
    from experiment.run.crew import Crew

SECONDS_BETWEEN_TRIES = 1.0  # for work that another process holds
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_SAVE = 60.0  # for workers that are told to stop


@dataclass(frozen=True)
class Site:
    """Where one experiment lies, and with how many threads its cells are computed."""

    folder: Path
    directories: Directories
    threads: int


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
    pool = _Pool(setup, workers)
    busy: dict[str, float] = {}
    deaths = Deaths(setup)
    try:
        while queue or pool.working:
            now = time.monotonic()
            held = frozenset(name for name, since in busy.items() if now - since < SECONDS_BETWEEN_TRIES)
            while pool.idle and (work := queue.take(held)) is not None:
                pool.start(work)
            for work, message in pool.receive(timeout=SECONDS_BETWEEN_TRIES):
                if isinstance(message, Lost):
                    rest = deaths.left_of(work, message, lambda event, w=work: listen(w, event))  # type: ignore[misc]
                    if rest is None:
                        queue.finished(work)
                    else:
                        queue.put_back(rest)
                elif message is True:
                    queue.finished(work)
                elif message is False:
                    busy[work.name] = time.monotonic()
                    queue.put_back(work)
                else:
                    deaths.note(work, message)
                    listen(work, message)
    except KeyboardInterrupt:
        pool.let_save()
        raise
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


class _Pool:
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
        """What working members have told since the last call: events, True (done), False (held by others) or Lost."""
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

    def let_save(self) -> None:
        """Tell all workers to stop, and give them the time to save where their trainings are."""
        for member in self.members:
            member.process.terminate()
        until = time.monotonic() + SECONDS_TO_SAVE
        for member in self.members:  # in slices: a signal that another thread gets does not end the waiting of this one
            while member.process.is_alive() and time.monotonic() < until:
                member.process.join(SECONDS_BETWEEN_LOOKS)

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
    """The life of a worker: take work, do it, tell of it, until nobody is there to tell or the parent says so.

    Args:
        hired: the monotonic time at which its process was started.
    """
    stop_when_told()
    with contextlib.suppress(KeyboardInterrupt):
        _work(connection, setup, hired)


def _work(connection: Connection, setup: Setup, hired: float) -> None:
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
        except (CannotWrite, OSError) as error:
            tell(Lost(str(error), fatal=True))
        except Exception as error:  # what no cell could be given: a damaged results folder, say
            tell(Lost(f"{type(error).__name__}: {error}"))
