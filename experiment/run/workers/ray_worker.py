"""What runs inside the processes of Ray: a piece of work, and the mailbox through which it tells how far it is.

Everything travels as bytes. The process first learns how many threads it may use and where modules of the user's own
lie; what it was sent is opened, and torch imported, after that.
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
    from experiment.run.cell.events import Event, Report
    from experiment.run.workers.queue import Work


@dataclass(frozen=True)
class Home:
    """Where the command was given: what a worker needs to understand paths and names as the command does.

    Attributes:
        folder: its working directory.
        path: its `sys.path`.
        threads: the most that any of its cells computes with.
    """

    folder: str
    path: tuple[str, ...]
    threads: int


class Mailbox:
    """Keeps what workers tell until somebody asks for it."""

    def __init__(self) -> None:
        self._letters: list[bytes] = []

    def put(self, letter: bytes) -> None:
        """Take a letter in."""
        self._letters.append(letter)

    def empty(self) -> list[bytes]:
        """Hand out the letters that came since the last time, in their order."""
        letters, self._letters = self._letters, []
        return letters


def do_work(work: bytes, setup: bytes, home: Home, mailbox: Any) -> bool:
    """Do a piece of work; returns False where another process is at it, and only when all that it told has arrived."""
    do = _settle(setup, home)
    item: Work = pickle.loads(work)
    last = None

    def report(event: Event) -> None:
        nonlocal last
        last = mailbox.put.remote(pickle.dumps((item.name, event)))

    try:
        return do(item, report)
    finally:
        if last is not None:
            ray.get(last)  # letters of one sender arrive in their order


@lru_cache(maxsize=1)
def _settle(setup: bytes, home: Home) -> Callable[[Work, Report], bool]:
    """Make this process ready, once: the next pieces of work find the data loaded."""
    try:
        os.chdir(home.folder)
    except OSError as error:
        raise ExperimentError(
            f"the node {socket.gethostname()} cannot enter {home.folder} ({error.strerror}): the nodes of the cluster "
            "must share the folders of results and data, and the one in which the command is given"
        ) from error
    sys.path[:] = [*home.path, *(folder for folder in sys.path if folder not in home.path)]  # the same module first
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported
        os.environ[name] = str(home.threads)
    from experiment.run.workers.pool import make_worker

    return make_worker(pickle.loads(setup))
