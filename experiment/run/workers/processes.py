"""A pool of worker processes on this machine. A process that dies is replaced."""

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
from experiment.run.cell.context import max_threads
from experiment.run.cell.events import Event
from experiment.run.machine import gpu_variable, visible_gpus
from experiment.run.signals import stop_on_sigterm
from experiment.run.workers.pool import SECONDS_TO_SAVE, Contexts, WorkerLost, make_worker
from experiment.run.workers.queue import Work

SECONDS_BETWEEN_LOOKS = 0.2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
DIED = "its worker process died (killed, or out of memory)"

WorkerMain = Callable[[Connection, Contexts], None]


@dataclass
class _Worker:
    slot: int
    process: BaseProcess
    connection: Connection
    work: Work | None = None


class Processes:
    """Worker processes, connected by pipes. They start at once, so that torch is imported while the caller checks.

    Each has one of `size` slots. The slot decides the GPU, so a worker and its replacement use the same one.

    Args:
        worker_main: the function that a worker process runs.
    """

    def __init__(self, contexts: Contexts, size: int, worker_main: WorkerMain | None = None) -> None:
        self.contexts, self.size, self.worker_main = contexts, size, worker_main or _work
        self.gpus = visible_gpus(contexts[0].machine)
        self.workers: list[_Worker] = []
        for _ in range(size):
            self._start_worker()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def working(self) -> bool:
        return any(worker.work is not None for worker in self.workers)

    @property
    def idle(self) -> bool:
        return sum(worker.work is not None for worker in self.workers) < self.size

    def start(self, work: Work) -> None:
        for worker in [worker for worker in self.workers if worker.work is None]:
            try:
                worker.connection.send(work)
            except OSError:  # it died while it was idle
                self.workers.remove(worker)
                continue
            worker.work = work
            return
        worker = self._start_worker()
        worker.work = work
        worker.connection.send(work)

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        working = {w.connection: w for w in self.workers if w.work is not None}
        if not working:
            time.sleep(timeout)
            return []
        messages: list[tuple[Work, Any]] = []
        for connection in wait([*working], timeout):
            assert isinstance(connection, Connection)
            worker = working[connection]
            assert worker.work is not None
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = WorkerLost(DIED)
                self.workers.remove(worker)
            messages.append((worker.work, message))
            if isinstance(message, bool | WorkerLost):
                worker.work = None
        return messages

    def let_save(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        until = time.monotonic() + SECONDS_TO_SAVE
        for worker in self.workers:  # in slices: a signal that another thread receives does not interrupt `join`
            while worker.process.is_alive() and time.monotonic() < until:
                worker.process.join(SECONDS_BETWEEN_LOOKS)

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.kill()  # results are written atomically
        for worker in self.workers:
            worker.process.join()

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        slot = min(set(range(self.size)) - {worker.slot for worker in self.workers})
        arguments = (theirs, self.contexts, self._environment(slot), self.worker_main)
        process = context.Process(target=_run_worker, args=arguments)
        with no_main_module():
            process.start()
        theirs.close()
        worker = _Worker(slot, process, ours)
        self.workers.append(worker)
        return worker

    def _environment(self, slot: int) -> dict[str, str]:
        """The environment variables of a worker; they are set in the worker only."""
        variables = dict.fromkeys(THREAD_VARIABLES, str(max_threads(self.contexts)))
        if self.gpus:
            variables[gpu_variable()] = self.gpus[slot % len(self.gpus)]
        return variables


@contextlib.contextmanager
def no_main_module() -> Iterator[None]:
    """Keep processes that are started inside from running the caller's script, which would start the experiment again.

    `spawn` runs the script in each new process; hiding the script's name is the only way to prevent this.
    """
    script = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(script)[name] for name in ("__spec__", "__file__") if name in vars(script)}
    vars(script).update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        vars(script).update(hidden)


def _run_worker(connection: Connection, contexts: Contexts, environment: Mapping[str, str], main: WorkerMain) -> None:
    os.environ.update(environment)  # read when torch is imported, and when it first uses a GPU
    stop_on_sigterm()
    with contextlib.suppress(KeyboardInterrupt):
        main(connection, contexts)


def _work(connection: Connection, contexts: Contexts) -> None:
    """Do the work that comes through the pipe, until the parent closes it."""
    compute = make_worker(contexts)

    def send(message: Event | bool | WorkerLost) -> None:
        try:
            connection.send(message)
        except OSError:  # the parent has exited, which is not a failure of the cell
            raise SystemExit(1) from None

    while True:
        try:
            work = connection.recv()
        except (EOFError, OSError):
            return
        try:
            send(compute(work, send))
        except ExperimentError as error:  # not the fault of a cell: a full disk, a folder of another version
            send(WorkerLost(str(error), fatal=True))
        except Exception as error:
            send(WorkerLost(f"{type(error).__name__}: {error}"))
