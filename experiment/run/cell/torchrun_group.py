"""The processes under torchrun: the first runs the experiment, the others take part in each training it announces.

Announcements go through torch's store, where one may wait long, tensors through its process group. A training that
fails in the same way everywhere is a result like any other; one that fails in some processes only ends them all, and
what is on the disk is where the same command continues.
"""

from __future__ import annotations

import logging
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from experiment.config import Parameters, Training
from experiment.escaping import say
from experiment.random_streams import Part
from experiment.run.grid.plan import Machine
from experiment.training.distributed import ALONE, Team

log = logging.getLogger("experiment")

LONGEST_STEP = timedelta(minutes=30)  # that one process may be behind the others, as when it reads its data first
SECONDS_TO_AGREE = 10.0  # after a training has failed in one process, for the others to fail too
SECONDS_TO_LEAVE = 30.0
FAILED = 1  # exit status


@dataclass(frozen=True)
class Job:
    """A training to take part in.

    Attributes:
        parameters: those of its variant. training: its block, of training or of retraining.
        plan: what the network is like, as `Plan.to_data` writes it; its weights come when the training starts.
        stream: of its random draws. until: an epoch at whose start to stop.
        datasets: where they lie.
    """

    parameters: Parameters
    training: Training
    plan: dict[str, object]
    stream: tuple[Part, ...]
    datasets: Path
    until: int | None = None


@dataclass(frozen=True)
class Stop:
    """Nothing is left to do."""


class CrewLost(BaseException):
    """Processes that train together no longer do the same: no fault of the cell, so no Exception for it to catch."""


class Crew:
    """The processes that train together, as one of them sees them.

    Args:
        machine: gives the device of this process.
    """

    def __init__(self, machine: Machine) -> None:
        self._store, rank, size = next(rendezvous("env://", timeout=LONGEST_STEP))
        self.team, self.device = Team(rank, size), torch.device(machine.device)
        self.training = False  # whether all are at the same training, or should be
        self._messages = self._groups = 0
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._make_group()

    def send(self, message: Job | Stop) -> None:
        """Tell the others what comes next; the first process's business."""
        with _store_at_hand():
            self._store.set(self._next_key(), pickle.dumps(message))

    def receive(self) -> Job | Stop:
        """What the first process says next, however long it has other things to do.

        Raises: CrewLost: it is gone.
        """
        key = self._next_key()
        with _store_at_hand():
            while not self._wait([key], LONGEST_STEP):
                pass
            return pickle.loads(self._store.get(key))  # type: ignore[no-any-return]

    def settle(self, error: Exception) -> None:
        """A training has failed here. Returns if it has failed in the same way everywhere, so that the next may come.

        Raises: CrewLost: it has not.
        """
        ranks = range(self.team.size)
        keys = [f"failed/{self._messages}/{rank}" for rank in ranks]
        with _store_at_hand():
            self._store.set(keys[self.team.rank], f"{type(error).__name__}: {error}")
            everywhere = not self._store.check(["lost"]) and self._wait(keys, timedelta(seconds=SECONDS_TO_AGREE))
            failures = {rank: self._store.get(keys[rank]).decode() for rank in ranks if self._store.check([keys[rank]])}
            lost = self._store.check(["lost"])
        if lost or not everywhere or len({text.partition(":")[0] for text in failures.values()}) > 1:
            said = {rank: f"failed: {failures[rank]}" if rank in failures else "does not answer" for rank in ranks}
            self.give_up("; ".join(f"process {rank} {text}" for rank, text in said.items()))
        self._make_group()  # what was under way in the old one when it failed is forgotten

    def give_up(self, reason: str) -> NoReturn:
        """End the common work: what this process has met, the others have not.

        Raises: CrewLost: always.
        """
        with _store_at_hand():
            first = self._store.compare_set("lost", "", reason).decode()
        raise CrewLost(first)

    def leave(self) -> None:
        """The end that all come to."""
        keys = [f"left/{rank}" for rank in range(self.team.size)]
        with _store_at_hand():
            self._store.set(keys[self.team.rank], "")
            if self.team.rank == 0:  # whose process may keep the store
                self._wait(keys, timedelta(seconds=SECONDS_TO_LEAVE))
        dist.destroy_process_group()

    def _next_key(self) -> str:
        self._messages += 1
        return f"message/{self._messages}"

    def _wait(self, keys: list[str], longest: timedelta) -> bool:
        """Whether all keys are there, after waiting for them."""
        try:
            self._store.wait(keys, longest)
        except dist.DistStoreError:  # so long have we waited
            return False
        return True

    def _make_group(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        self._groups += 1
        dist.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            store=PrefixStore(f"group/{self._groups}", self._store),
            rank=self.team.rank,
            world_size=self.team.size,
            timeout=LONGEST_STEP,
        )


@contextmanager
def _store_at_hand() -> Iterator[None]:
    """Raises: CrewLost: the store is gone, and so is the process that kept it."""
    try:
        yield
    except dist.DistNetworkError as error:
        raise CrewLost("the process that holds them together is gone") from error


@contextmanager
def together(crew: Crew | None, job: Job) -> Iterator[Team]:
    """The team that trains inside: everyone, where there is a crew, else this process alone.

    Raises: CrewLost: the training failed, and not in all processes alike.
    """
    if crew is None:
        yield ALONE
        return
    crew.send(job)
    crew.training = True
    try:
        yield crew.team
    except Exception as error:
        crew.settle(error)
        crew.training = False
        raise
    crew.training = False


def lead(machine: Machine, work: Callable[[Crew], int]) -> int:
    """Do the work, in the first process, with the others at its service; returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    crew = Crew(machine)
    try:
        status = work(crew)
    except CrewLost as lost:
        say(f"The processes that train together have lost each other: {lost}", sys.stderr)
        say("The same command continues from the last checkpoint.", sys.stderr)
        return FAILED
    except BaseException as error:
        crew.send(Stop())
        if isinstance(error, Exception) and not crew.training:  # else they are not there to hear it
            crew.leave()
        raise
    crew.send(Stop())
    crew.leave()
    return status


def wait_for_all() -> None:
    """Return when every process has come here, or soon if some do not come.

    For what all find wrong and one tells: torchrun ends them all when the first has ended.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=SECONDS_TO_LEAVE)))
        for step in ("told", "left"):
            store.set(f"{step}/{rank}", "")
            if step == "told" or rank == 0:  # whose process may keep the store
                store.wait([f"{step}/{other}" for other in range(size)], timedelta(seconds=SECONDS_TO_LEAVE))
    except dist.DistError:
        log.warning("the other processes have not been heard of")


def _interrupt_once(number: int, frame: FrameType | None) -> Any:
    """Ctrl-C reaches this process from the terminal and again from torchrun; the second must not break the tidying."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
