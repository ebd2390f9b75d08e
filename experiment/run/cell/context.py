"""What all work of one process on one experiment shares."""

from __future__ import annotations

from dataclasses import dataclass

from experiment.run.cell.data import Data
from experiment.run.cell.torchrun_group import Crew
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.plan import Machine


@dataclass(frozen=True)
class Context:
    """Where an experiment lies, its data, and the machine that computes it.

    Attributes:
        retry_failed: whether failed cells are computed again.
        crew: the processes that take part in every training; None if this process trains alone.
    """

    store: Store
    directories: Directories
    machine: Machine
    data: Data
    retry_failed: bool = False
    crew: Crew | None = None
