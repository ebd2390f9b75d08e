"""Code that runs in the processes of Ray: a task, and the mailbox for its events.

Work and contexts travel as bytes. A process sets the number of threads and the paths of user modules before
it unpickles them and imports torch.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ray

from experiment.errors import ExperimentError

if TYPE_CHECKING:
    from experiment.run.cell.events import Event, ReportEvent
    from experiment.run.workers.queue import Work


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
    """Stores the events of the workers until the driver asks for them."""

    def __init__(self) -> None:
        self._letters: list[bytes] = []

    def put(self, letter: bytes) -> None:
        """Store a letter."""
        self._letters.append(letter)

    def empty(self) -> list[bytes]:
        """The letters since the last call, in order."""
        letters, self._letters = self._letters, []
        return letters


def compute_task(work: bytes, contexts: bytes, driver: Driver, mailbox: Any) -> bool:
    """Do a piece of work; returns False if another process holds it. All its events have arrived by then."""
    compute = _prepared(contexts, driver)
    item: Work = pickle.loads(work)
    last = None

    def report(event: Event) -> None:
        nonlocal last
        last = mailbox.put.remote(pickle.dumps((item.name, event)))

    try:
        return compute(item, report)
    finally:
        if last is not None:
            ray.get(last)  # messages of one sender arrive in order


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
