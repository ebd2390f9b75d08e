"""Events that a worker reports while it computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from experiment.run.grid.cells import Cell


@dataclass(frozen=True)
class Started:
    """A reference network or a cell (`key`) has begun; `name` is for people, `units` its share of the work."""

    name: str
    units: float
    key: str = ""


@dataclass(frozen=True)
class Advanced:
    """Units of the current work are done: one per epoch, and one for compressing and testing a cell."""

    units: float


@dataclass(frozen=True)
class Busy:
    """The progress of a long analysis of `name`, in words."""

    name: str
    text: str


@dataclass(frozen=True)
class EpochStarted:
    """An epoch of the reference network or cell that has begun last is about to begin."""

    epoch: int
    num_epochs: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch of `name` has ended.

    Attributes:
        valid: the primary metric after it in words, if there is a validation part.
        figures: its row of history.csv.
    """

    name: str
    epoch: int
    num_epochs: int
    loss: float
    valid: str | None
    figures: Mapping[str, float | None]


@dataclass(frozen=True)
class CellDone:
    """A cell has its result, which is stored; `figure` is the primary metric of its network in words."""

    key: str
    name: str
    status: str
    figure: str | None
    keep_parameters: float | None
    error: str | None


@dataclass(frozen=True)
class Note:
    """Something that the user should read."""

    text: str


Event = Started | Advanced | Busy | EpochStarted | EpochDone | CellDone | Note
ReportEvent = Callable[[Event], None]


class CountedReport:
    """A report that counts the units of work reported."""

    def __init__(self, report: ReportEvent) -> None:
        self._report, self._units = report, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced):
            self._units += event.units
        self._report(event)

    def fill_up_to(self, units: float) -> None:
        """Report the work that was not needed: it stopped early, or was already recorded."""
        if units > self._units:
            self(Advanced(units - self._units))


def result_in_words(event: CellDone) -> str:
    """How a cell ended, for people."""
    if event.status == "failed":
        return f"FAILED: {event.error}"
    if event.status == "infeasible":
        return f"infeasible: {event.error}"
    kept = "" if event.keep_parameters is None else f", {event.keep_parameters:.1%} of the parameters"
    return f"{event.figure}{kept}"


def cell_name(cell: Cell) -> str:
    """A short description of a cell, for people."""
    words = [cell.variant, cell.label, cell.size if cell.method != "Reference" else "", f"net {cell.net}"]
    return " ".join(word for word in words if word) + (f" rep {cell.repetition}" if cell.repetition else "")
