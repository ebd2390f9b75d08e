"""Worker processes on this machine: each with a pipe, replaced when it dies, told to save when the work is stopped."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from experiment.errors import ExperimentError
from experiment.run.cell.events import Event
from experiment.run.machine import gpu_variable, visible_gpus
from experiment.run.signals import stop_when_told
from experiment.run.workers.deaths import Lost
from experiment.run.workers.pool import SECONDS_TO_SAVE, Listener, make_worker, run_in_pool
from experiment.run.workers.queue import Queue, Work
from experiment.run.workers.setup import Setup

SECONDS_BETWEEN_LOOKS = 0.2


Life = Callable[[Connection, Setup], None]


@dataclass
class _Member:
    slot: int
    process: BaseProcess
    connection: Connection
    work: Work | None = None


class Processes:
    """Worker processes, each with a pipe; who dies is replaced.

    They are started at once and get ready, which takes seconds, while the caller still looks whether all is well.
    Each has one of `size` slots. The slot decides the GPU, so a worker and its replacement use the same one.

    Args:
        life: what a worker process does from start to end.
    """

    def __init__(self, setup: Setup, size: int, life: Life | None = None) -> None:
        self.setup, self.size, self.life = setup, size, life or _work
        self.gpus = visible_gpus(setup.machine)
        self.members: list[_Member] = []
        for _ in range(size):
            self._hire()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, queue: Queue, listen: Listener) -> None:
        """Do all work, and end the processes."""
        run_in_pool(self, queue, self.setup, listen)

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

    def let_save(self) -> None:
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
        slot = min(set(range(self.size)) - {member.slot for member in self.members})
        arguments = (theirs, self.setup, self._environment(slot), self.life)
        process = context.Process(target=_work_for, args=arguments)
        with no_main_module():
            process.start()
        theirs.close()
        member = _Member(slot, process, ours)
        self.members.append(member)
        return member

    def _environment(self, slot: int) -> dict[str, str]:
        """The variables of a slot's process; they are never set in this one."""
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.setup.most_threads))
        if self.gpus:
            variables[gpu_variable()] = self.gpus[slot % len(self.gpus)]
        return variables


@contextlib.contextmanager
def no_main_module() -> Iterator[None]:
    """Processes that are started inside do not run the caller's script, which would run the experiment once more."""
    script = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(script)[name] for name in ("__spec__", "__file__") if name in vars(script)}
    vars(script).update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        vars(script).update(hidden)


def _work_for(connection: Connection, setup: Setup, environment: Mapping[str, str], life: Life) -> None:
    """The life of a worker: take work, do it, report it, until the parent is gone or says stop."""
    os.environ.update(environment)  # torch reads it when it is imported, and when it first uses a GPU
    stop_when_told()
    with contextlib.suppress(KeyboardInterrupt):
        life(connection, setup)


def _work(connection: Connection, setup: Setup) -> None:
    do = make_worker(setup)

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
        except ExperimentError as error:  # no cell's fault: a full disk, a folder of another version
            tell(Lost(str(error), fatal=True))
        except Exception as error:
            tell(Lost(f"{type(error).__name__}: {error}"))
