"""`.live/` in a results folder: what every process of the command is computing, for `--status`. Without torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiment.errors import CannotWrite, StoreError, log, shortened
from experiment.escaping import json_text, one_line
from experiment.files import read_json, remove_all, safe_name, write_whole
from experiment.run.cell.events import Advanced, Busy, CellDone, EpochDone, Event, Note, Started, result_in_words
from experiment.run.grid.data_facts import Count

LIVE, VERSION = ".live", 1
MOST_MESSAGES = 10
SILENT, FORGOTTEN = 120.0, 86_400.0  # seconds without a sign of life: a process may have ended; its file is removed
SECONDS_BETWEEN_WRITES, WRITES_ASIDE = 1.0, 20  # at least, and at least so many times the duration of the last write

Text = Annotated[str, Field(max_length=10_000)]
Time = Annotated[float, Field(ge=0, le=1e11)]  # seconds since 1970
Units = Annotated[float, Field(ge=0, le=1e12)]  # one per epoch, and one per cell


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class UnderWay(_Record):
    """A cell (`key`) or other work, of which `done` of the `units` are done; `text` says more."""

    name: Text
    since: Time
    key: Text = ""
    units: Units = 0.0
    done: Units = 0.0
    text: Text = ""


class Message(_Record):
    """A line for people, and when it was said."""

    at: Time
    text: Text


class LiveState(_Record):
    """What one process of the command does for one experiment.

    Attributes:
        born: when the process started, in the system's unit, since others get the same pid later; empty if unknown.
        share, shares: K and N of a job array; shares is 1 without.
        started: when its first work began.
        heartbeat: when this was written.
        under_way: by worker.
    """

    format: Literal[1] = 1
    host: Text
    pid: Count
    born: Text
    device: Text
    share: Count = 0
    shares: Annotated[int, Field(ge=1, lt=2**31)] = 1
    started: Time
    heartbeat: Time
    done: Units = 0.0
    under_way: dict[Text, UnderWay] = {}
    messages: list[Message] = []

    def life(self, now: float) -> Literal["runs", "silent", "ended"]:
        """Whether the process runs, as far as this machine can tell."""
        if self.host == socket.gethostname() and self.born != _born(self.pid):
            return "ended"
        return "runs" if now - self.heartbeat <= SILENT else "silent"

    def take(self, worker: str, event: Event) -> None:
        """Take note of what a worker reports."""
        now, doing = time.time(), self.under_way.get(worker)
        if isinstance(event, Started):
            if not self.done and not self.under_way:
                self.started = now  # not when torch was imported
            self.under_way[worker] = UnderWay(name=_shown(event.name), since=now, key=event.key, units=event.units)
        elif isinstance(event, Advanced) and doing is not None:
            self.done, doing.done = self.done + event.units, doing.done + event.units
        elif isinstance(event, EpochDone) and doing is not None:
            doing.text = f"epoch {event.epoch + 1} of {event.num_epochs} done"
        elif isinstance(event, Busy) and doing is not None:
            doing.text = _shown(event.text)
        elif isinstance(event, CellDone):
            self.under_way.pop(worker, None)
            self._say(now, f"{event.name}: {result_in_words(event)}")
        elif isinstance(event, Note):
            self._say(now, event.text)

    def _say(self, now: float, text: str) -> None:
        self.messages = [*self.messages, Message(at=now, text=_shown(text))][-MOST_MESSAGES:]


def read_live(folder: Path) -> tuple[dict[Path, LiveState], list[str]]:
    """The states in a results folder by file, and a note for each file that holds none."""
    states, notes = {}, []
    for path in sorted((folder / LIVE).glob("[!.]*.json")):
        try:
            states[path] = LiveState.model_validate(read_json(path))
        except FileNotFoundError:  # its process has ended since
            continue
        except (StoreError, ValidationError):
            notes.append(f"ignored: {path} is no live state of this version")
    return states, notes


class LiveFiles:
    """The live states of this process, one per experiment; a context that removes their files at the end.

    A file that cannot be written is reported once, and costs nothing else.
    """

    def __init__(self, folders: Sequence[Path], device: str, share: tuple[int, int] | None) -> None:
        host, pid, now = socket.gethostname(), os.getpid(), time.time()
        k, n = share or (0, 1)
        state = LiveState(
            host=host, pid=pid, born=_born(pid), device=device, share=k, shares=n, started=now, heartbeat=now
        )
        name = f"{safe_name(f'{host}-{pid}')}.json"
        self._live = {i: (each / LIVE / name, state.model_copy(deep=True)) for i, each in enumerate(folders)}
        self._due, self._writable = 0.0, True

    def __enter__(self) -> LiveFiles:
        folders, now = [path.parent.parent for path, _ in self._live.values()], time.time()
        for path, state in (item for folder in folders for item in read_live(folder)[0].items()):
            if state.life(now) == "ended" or now - state.heartbeat > FORGOTTEN:
                _remove(path)
        if all(folder.is_dir() for folder in folders):  # the checks come before a new folder
            self._write()
        return self

    def __exit__(self, *_: object) -> None:
        for experiment in list(self._live):
            self.end(experiment)

    def end(self, experiment: int) -> None:
        """An experiment is finished."""
        _remove(self._live.pop(experiment)[0])

    def show(self, experiment: int, worker: str, event: Event) -> None:
        """Take note of an event, and write the states if it is time, or if a cell starts."""
        self._live[experiment][1].take(worker, event)
        if isinstance(event, Started) or time.monotonic() >= self._due:
            self._write()

    def _write(self) -> None:
        started = time.monotonic()
        for path, state in self._live.values() if self._writable else ():
            state.heartbeat = time.time()
            try:
                write_whole(path, json_text(state.model_dump(), indent=1) + "\n")
            except CannotWrite as error:
                log.warning("%s cannot be written: --status will not show this process (%s)", path, error.__cause__)
                self._writable = False
                break
        ended = time.monotonic()
        self._due = ended + max(SECONDS_BETWEEN_WRITES, WRITES_ASIDE * (ended - started))


def _shown(text: str) -> str:
    return shortened(one_line(text), 1_000)


def _remove(path: Path) -> None:
    """Remove a state, what a kill left of its writing, and the folder of the last one."""
    remove_all((path, *path.parent.glob(f".{path.name}.*")))
    with suppress(OSError):
        path.parent.rmdir()


def _born(pid: int) -> str:
    """When a process started; empty if there is none, or the system does not tell."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else fields[18]
    return ""
