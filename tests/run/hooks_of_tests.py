"""Hooks for tests; parameter files name them as a user's own."""

import json
from pathlib import Path
from typing import Any

NOTES = Path("notes.jsonl")


class Recorder:
    """Writes down every call."""

    def __init__(self, word: str = "") -> None:
        self.word = word

    def _note(self, method: str, **facts: Any) -> None:
        with NOTES.open("a") as stream:
            stream.write(json.dumps({"method": method, "word": self.word, **facts}, default=str) + "\n")

    def run_start(self, run: Any) -> None:
        self._note("run_start", name=run.name, num_cells=run.num_cells, seed=run.parameters["seed"])

    def run_end(self, run: Any, counts: Any) -> None:
        self._note("run_end", counts=dict(counts))

    def cell_start(self, cell: Any) -> None:
        self._note("cell_start", cell=vars(cell))

    def cell_end(self, cell: Any, result: Any) -> None:
        self._note("cell_end", cell=vars(cell), result=dict(result))

    def epoch_start(self, cell: Any, epoch: int, num_epochs: int) -> None:
        self._note("epoch_start", key=cell.key, epoch=epoch, num_epochs=num_epochs)

    def epoch_end(self, cell: Any, epoch: Any) -> None:
        self._note("epoch_end", key=cell.key, **vars(epoch))


class Failing:
    """Fails at the end of epochs, until it has been called `times`."""

    def __init__(self, times: int = 10**9, interrupt: bool = False, leave: bool = False) -> None:
        self.times, self.calls = times, 0
        self.error = KeyboardInterrupt if interrupt else SystemExit if leave else RuntimeError

    def epoch_end(self, cell: Any, epoch: Any) -> None:
        self.calls += 1
        Path("calls").write_text(str(self.calls))
        if self.calls <= self.times:
            raise self.error("boom.")


class HalfDead(Failing):
    """Has methods that are nearly those of a hook, and something else."""

    cell_limit = 3

    def cell_ends(self, cell: Any, result: Any) -> None:
        pass

    @property
    def run_id(self) -> str:
        raise RuntimeError("not started")


class NoHook:
    """Has a method of another framework."""

    def on_epoch_end(self) -> None:
        pass


def refuses(**settings: Any) -> None:
    raise ValueError("no such server")
