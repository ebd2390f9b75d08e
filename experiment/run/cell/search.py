"""A cell whose keep ratio is searched: the smallest of a few networks that is within a loss of validation accuracy.

Every sample is made as an ordinary cell of its keep ratio is, in a folder of its own below the cell's. What has come
of it is written down at once, and the checkpoint of the smallest network within the loss is kept, from which it comes
back: an interruption costs what it costs an ordinary cell.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from torch import nn

from experiment.config import Search
from experiment.errors import Damaged, InfeasibleBudget, TrainingDiverged
from experiment.escaping import json_text
from experiment.files import read_json, remove_all, set_aside, write_whole
from experiment.lc.keep_search import is_within, search_keep
from experiment.run.cell.events import Advanced, Event, Report
from experiment.run.cell.outcome import CellNetwork
from experiment.run.disk.store import Store
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.plan import Cell

SAMPLES, TABLE = "samples.json", "search.csv"

log = logging.getLogger("experiment")


@dataclass(frozen=True)
class Tried:
    """A sample as search.csv has it.

    Attributes:
        parameters, valid_top1: of its network; None where there is none.
        needed: the reference's validation top-1 less what may be lost.
        within: whether it has that.
        epochs: that it was retrained for. seconds: all of it.
        status: done; infeasible or diverged, and then why.
    """

    keep: float
    parameters: int | None
    valid_top1: float | None
    needed: float
    within: bool
    epochs: float
    seconds: float
    status: str
    error: str


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        samples: in the order in which they were made.
        best: the ordinary cell of the smallest keep ratio within the loss; None where none is.
        reason: why there is none.
    """

    samples: tuple[Tried, ...]
    best: Cell | None
    reason: str

    @property
    def facts(self) -> dict[str, Any]:
        """What the cell's result says of it: the time is that of all samples."""
        seconds = round(sum(tried.seconds for tried in self.samples), 3)
        keep = {} if self.best is None else {"keep_found": self.best.keep}
        return {"samples": len(self.samples), "seconds_retrain": seconds, **keep}

    def table(self) -> list[dict[str, Any]]:
        """The rows of search.csv."""
        return [asdict(tried) for tried in self.samples]


def search(
    cell: Cell,
    block: Search,
    make: Callable[[Cell, Report], CellNetwork],
    valid_top1: Callable[[nn.Module], float],
    reference: nn.Module,
    store: Store,
    report: Report,
) -> Found:
    """Make samples until the search ends; those that an interrupted process has finished are not made again.

    Args:
        make: compresses and retrains an ordinary cell, and raises what that does.
        valid_top1: accuracy on images that decide, which are not those of the test.
    Raises: TrainingDiverged: every network that could be made did.
    """
    whole = valid_top1(reference)
    done, told = _Log(store.partial(cell.key) / SAMPLES), _Counted(report)
    samples: list[Tried] = []

    def top1(keep: float) -> float:
        tried = done.found.get(keep)
        if tried is None:
            tried = _tried(_sample(cell, keep), make, valid_top1, whole - block.accuracy_loss, told)
            done.add(tried)
            _forget_others(cell, tried, done, store)
        samples.append(tried)
        told.fill(len(samples) * cell.epochs_retrain / cell.samples)
        return math.nan if tried.valid_top1 is None else tried.valid_top1

    keep = search_keep(
        top1, reference=whole, accuracy_loss=block.accuracy_loss, samples=block.samples, smallest=block.smallest
    ).keep
    told.fill(cell.epochs_retrain)
    if keep is not None:
        return Found(tuple(samples), _sample(cell, keep), "")
    return Found(tuple(samples), None, _reason(samples, whole, block))


def _sample(cell: Cell, keep: float) -> Cell:
    """The ordinary cell of a keep ratio; where it is computed lies within the searched one's folder."""
    epochs = cell.epochs_retrain // cell.samples
    return replace(cell, keep=keep, key=f"{cell.key}/{keep}", epochs_retrain=epochs, samples=0, fixed_size=False)


def _tried(
    sample: Cell,
    make: Callable[[Cell, Report], CellNetwork],
    valid_top1: Callable[[nn.Module], float],
    least: float,
    report: Report,
) -> Tried:
    started = time.perf_counter()
    try:
        made = make(sample, report)
    except (InfeasibleBudget, TrainingDiverged) as error:  # so small a network does not do: that is an answer, too
        status = "infeasible" if isinstance(error, InfeasibleBudget) else "diverged"
        seconds = round(time.perf_counter() - started, 3)
        return Tried(sample.keep, None, None, least, False, 0, seconds, status, str(error))
    top1, size = valid_top1(made.compressed.network), made.compressed.count.parameters
    seconds = round(time.perf_counter() - started, 3)
    within, epochs = is_within(top1, least, 0.0), made.facts["epochs"]
    return Tried(sample.keep, size, top1, least, within, epochs, seconds, "done", "")


def _forget_others(cell: Cell, last: Tried, done: _Log, store: Store) -> None:
    """Remove the checkpoints that nobody will need: of each sample but the smallest within the loss."""
    others = [keep for keep in done.found if keep != last.keep] if last.within else [last.keep]
    remove_all(store.partial(_sample(cell, keep).key) for keep in others)


def _reason(samples: list[Tried], whole: float, block: Search) -> str:
    """Why there is no network within the loss.

    Raises: TrainingDiverged: there is none at all, and not because they cannot be so small.
    """
    measured = [(whole - tried.valid_top1, tried.keep) for tried in samples if tried.valid_top1 is not None]
    if measured:
        lost, keep = min(measured)
        return (
            f"none of {len(samples)} networks is within {100 * block.accuracy_loss:g} points of the reference's "
            f"validation top-1 of {100 * whole:.4g} %: the least loss was {100 * lost:.3g} points, at keep ratio "
            f"{keep:.4g}. Allow a larger accuracyLoss or more samples, or retrain for longer."
        )
    diverged = [tried.error for tried in samples if tried.status == "diverged"]
    if diverged:
        raise TrainingDiverged(f"every sample of the search that could be made diverged. The last: {diverged[-1]}")
    return f"none of {len(samples)} networks can be so small. The last: {samples[-1].error} Or allow more samples."


class _Samples(BaseModel):
    """The file of a search under way."""

    format: Annotated[int, Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)]
    samples: list[Tried]


class _Log:
    """The samples that are done, in a file that is rewritten whole after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[float, Tried] = {}
        try:
            content = read_json(path)
            _Samples.model_validate(content)
            self.found = {row["keep"]: Tried(**row) for row in content["samples"]}
        except FileNotFoundError:
            pass
        except (Damaged, ValidationError, TypeError):
            log.warning("%s is damaged: set aside as %s.", path, set_aside(path).name)

    def add(self, tried: Tried) -> None:
        self.found[tried.keep] = tried
        rows = [asdict(row) for row in self.found.values()]
        write_whole(self._path, json_text({"format": FORMAT_VERSION, "samples": rows}, indent=1) + "\n")


class _Counted:
    """A report that knows how many units of work it was told of."""

    def __init__(self, report: Report) -> None:
        self._report, self._units = report, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced):
            self._units += event.units
        self._report(event)

    def fill(self, units: float) -> None:
        """Tell of what is missing to so many: samples that stopped early or needed no retraining."""
        if units > self._units:
            self(Advanced(units - self._units))
