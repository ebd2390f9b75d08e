"""What a hook is told, and when."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Run:
    """One call of the command for one experiment that has cells to compute.

    Attributes:
        name: of the experiment, such as `digits/prune/lenet5`.
        folder: of its results.
        num_cells: reference networks and cells to compute.
        parameters: the parameter file, includes resolved, as plain values.
    """

    name: str
    folder: Path
    num_cells: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class CellFacts:
    """A cell: one row of results.csv, a reference network or a compressed one.

    Attributes:
        key: identifies its result.
        name: a short description, for people.
        folder: where its files are once it has ended.
        method: `Reference` for reference networks.
        keep: the requested keep ratio; None if the method's settings or a search decide the size.
    """

    key: str
    name: str
    folder: Path
    network: str
    dataset: str
    variant: str
    method: str
    label: str
    keep: float | None
    net: int
    repetition: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    """An epoch of training or retraining, or a step of mode `lc`, that has ended.

    Attributes:
        epoch: its number, from 0, or from `retraining.startEpoch`.
        num_epochs: the number at which the training ends.
        loss: on the training batches; NaN for the first step of mode `lc`.
        valid: the primary metric on the validation part; None without one.
        figures: its row of history.csv.
    """

    epoch: int
    num_epochs: int
    loss: float
    valid: float | None
    figures: Mapping[str, float | None]


class Hook(Protocol):
    """The methods of a hook. All are optional: a hook is any object that has at least one of them."""

    def run_start(self, run: Run) -> None:
        """The cells are about to be computed."""

    def run_end(self, run: Run, counts: Mapping[str, int]) -> None:
        """No more cells are computed, also after an interruption.

        Args:
            counts: status -> number of cells: done, failed, infeasible, pending.
        """

    def cell_start(self, cell: CellFacts) -> None:
        """A cell is being computed; again after its worker has died. Cells that cannot run end without a start."""

    def cell_end(self, cell: CellFacts, result: Mapping[str, Any]) -> None:
        """A cell has ended.

        Args:
            result: result.json, of which `status` (done, failed, infeasible) is always there, with keep_parameters.
        """

    def epoch_start(self, cell: CellFacts, epoch: int, num_epochs: int) -> None:
        """An epoch is about to begin. Steps of mode `lc` have no start."""

    def epoch_end(self, cell: CellFacts, epoch: Epoch) -> None:
        """An epoch has ended. In a search, every network that is tried has its own epochs."""


METHODS = ("run_start", "run_end", "cell_start", "cell_end", "epoch_start", "epoch_end")
