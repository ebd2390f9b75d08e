"""The processes of torchrun: the first runs the experiment, the others join each training that it announces.

Announcements go through torch's store, in which a process may wait for hours, tensors through its process group. A
training that fails in the same way in all processes is an ordinary failure of its cell. If only some processes fail,
all of them end, and the same command continues from the last checkpoint.
"""

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
from experiment.errors import log
from experiment.escaping import say
from experiment.random_streams import Part
from experiment.run.grid.hardware import Machine
from experiment.training.distributed import ALONE, Team

LONGEST_STEP = timedelta(minutes=30)  # that processes wait for each other, for instance while one reads its data
SECONDS_TO_AGREE = 10.0  # for the other processes to fail, too
SECONDS_TO_LEAVE = 30.0
FAILED = 1  # exit status


@dataclass(frozen=True)
class Job:
    """A training to join.

    Attributes:
        parameters: of its variant.
        training: the block of training or retraining.
        plan: the structure of the network, as `Plan.to_data` returns it. The weights are sent when training starts.
        stream: of random draws.
        datasets: the folder of datasets.
        until: the epoch at whose start training stops.
    """

    parameters: Parameters
    training: Training
    plan: dict[str, object]
    stream: tuple[Part, ...]
    datasets: Path
    until: int | None = None


@dataclass(frozen=True)
class Stop:
    """The end of the work."""


class CrewLost(BaseException):
    """The processes do different things. Not an Exception, so that it is not taken for the failure of a cell."""


class Crew:
    """The processes that train together, as one of them sees them."""

    def __init__(self, machine: Machine) -> None:
        self._store, rank, size = next(rendezvous("env://", timeout=LONGEST_STEP))
        self.team, self.device = Team(rank, size), torch.device(machine.device)
        self.training = False  # whether all processes take part in a training
        self._messages = self._groups = 0
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._make_group()

    def send(self, message: Job | Stop) -> None:
        """In the first process: send the next message to the others."""
        with _store_at_hand():
            self._store.set(self._next_key(), pickle.dumps(message))

    def receive(self) -> Job | Stop:
        """The next message of the first process.

        Raises: CrewLost: it has ended.
        """
        key = self._next_key()
        with _store_at_hand():
            while not self._wait([key], LONGEST_STEP):
                pass
            return pickle.loads(self._store.get(key))  # type: ignore[no-any-return]

    def agree_on_failure(self, error: Exception) -> None:
        """Return if the training failed in the same way in all processes, so that the next one can start.

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
            said = {rank: f"failed: {failures[rank]}" if rank in failures else "does not respond" for rank in ranks}
            self.give_up("; ".join(f"process {rank} {text}" for rank, text in said.items()))
        self._make_group()  # the old one has unfinished operations

    def give_up(self, reason: str) -> NoReturn:
        """End all processes because of a problem that only this one has.

        Raises: CrewLost: always.
        """
        with _store_at_hand():
            first = self._store.compare_set("lost", "", reason).decode()
        raise CrewLost(first)

    def leave(self) -> None:
        """Wait for the others, and end the process group."""
        keys = [f"left/{rank}" for rank in range(self.team.size)]
        with _store_at_hand():
            self._store.set(keys[self.team.rank], "")
            if self.team.rank == 0:  # which may host the store
                self._wait(keys, timedelta(seconds=SECONDS_TO_LEAVE))
        dist.destroy_process_group()

    def _next_key(self) -> str:
        self._messages += 1
        return f"message/{self._messages}"

    def _wait(self, keys: list[str], longest: timedelta) -> bool:
        """Wait for all keys; returns whether they were set in time."""
        try:
            self._store.wait(keys, longest)
        except dist.DistStoreError:  # timeout
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
    """Raises: CrewLost: the process that hosts the store has ended."""
    try:
        yield
    except dist.DistNetworkError as error:
        raise CrewLost("the first process has ended") from error


@contextmanager
def together(crew: Crew | None, job: Job) -> Iterator[Team]:
    """The processes that train inside: all of the crew, or this one alone.

    Raises: CrewLost: the training failed differently in different processes.
    """
    if crew is None:
        yield ALONE
        return
    crew.send(job)
    crew.training = True
    try:
        yield crew.team
    except Exception as error:
        crew.agree_on_failure(error)
        crew.training = False
        raise
    crew.training = False


def lead(machine: Machine, work: Callable[[Crew], int]) -> int:
    """In the first process: do the work with the help of the others; returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    crew = Crew(machine)
    try:
        status = work(crew)
    except CrewLost as lost:
        say(f"The processes of torchrun cannot continue together: {lost}", sys.stderr)
        say("The same command continues from the last checkpoint.", sys.stderr)
        return FAILED
    except BaseException as error:
        crew.send(Stop())
        if isinstance(error, Exception) and not crew.training:  # else they do not wait for messages
            crew.leave()
        raise
    crew.send(Stop())
    crew.leave()
    return status


def wait_for_all() -> None:
    """Wait until every process has called this, for a limited time.

    If all find the same error and one prints it, the others must wait: torchrun kills all when the first one ends.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=SECONDS_TO_LEAVE)))
        for step in ("printed", "left"):
            store.set(f"{step}/{rank}", "")
            if step == "printed" or rank == 0:  # which may host the store
                store.wait([f"{step}/{other}" for other in range(size)], timedelta(seconds=SECONDS_TO_LEAVE))
    except dist.DistError:
        log.warning("the other processes of torchrun do not respond")


def _interrupt_once(number: int, frame: FrameType | None) -> Any:
    """Ctrl-C arrives twice, from the terminal and from torchrun. The second must not interrupt the cleanup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
