"""Code that runs in the processes of Ray: a task, and the mailbox for its events.

Work and contexts travel as bytes. A process sets the number of threads and the paths of user modules before
it unpickles them and imports torch.
"""

from __future__ import annotations

import _thread
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from experiment.errors import ExperimentError
from experiment.run.signals import stopping_cleanly

if TYPE_CHECKING:
    from experiment.run.cell.events import Event, ReportEvent
    from experiment.run.workers.queue import Work

SECONDS_BETWEEN_LOOKS = 1.0  # at whether the driver stops


@dataclass(frozen=True)
class Driver:
    """The process of the command.

    Attributes:
        folder: its working directory.
        path: its `sys.path`.
        threads: the maximum number of threads per cell.
    """

    folder: str
    path: tuple[str, ...]
    threads: int


class Mailbox:
    """Stores the events of the workers until the driver asks for them, and tells workers when the driver stops."""

    def __init__(self) -> None:
        self._letters: list[bytes] = []
        self._stopping = False

    def put(self, letter: bytes) -> None:
        """Store a letter."""
        self._letters.append(letter)

    def empty(self) -> list[bytes]:
        """The letters since the last call, in order."""
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> None:
        """All workers shall stop."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether all workers shall stop."""
        return self._stopping


def compute_task(work: bytes, contexts: bytes, driver: Driver, mailbox: Any) -> bool:
    """Do a piece of work; returns False if another process holds it. All its events have arrived by then.

    If the driver stops, this saves the last finished epoch and returns False.
    """
    compute = _prepared(contexts, driver)
    item: Work = pickle.loads(work)
    last = None

    def report(event: Event) -> None:
        nonlocal last
        last = mailbox.put.remote(pickle.dumps((item.name, event)))

    try:
        with stopping_cleanly(said=""), _interrupted_by(mailbox):
            return compute(item, report)
    except KeyboardInterrupt:
        return False
    finally:
        if last is not None:
            ray.get(last)  # messages of one sender arrive in order


@contextmanager
def _interrupted_by(mailbox: Any) -> Iterator[None]:
    """Inside, the main thread is interrupted when the driver stops: `ray.cancel` crashes drivers of Ray 2.60."""
    ended = threading.Event()

    def watch() -> None:
        with suppress(RayError):  # the driver has died, and Ray ends this process
            while not ended.is_set():
                if ray.get(mailbox.stopping.remote()):
                    _thread.interrupt_main(signal.SIGTERM)  # SIGINT is ignored where Ray was started in the background
                    return
                ended.wait(SECONDS_BETWEEN_LOOKS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@lru_cache(maxsize=1)
def _prepared(contexts: bytes, driver: Driver) -> Callable[[Work, ReportEvent], bool]:
    """Prepare this process once. Data remain loaded for later work."""
    try:
        os.chdir(driver.folder)
    except OSError as error:
        raise ExperimentError(
            f"the node {socket.gethostname()} cannot enter {driver.folder} ({error.strerror}). All nodes of the "
            "cluster must share the working directory and the folders of results and data."
        ) from error
    sys.path[:] = [*driver.path, *(folder for folder in sys.path if folder not in driver.path)]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported
        os.environ[name] = str(driver.threads)
    from experiment.run.workers.pool import make_worker

    return make_worker(pickle.loads(contexts))
