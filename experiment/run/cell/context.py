"""The facts about an experiment that its cells need. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.run.disk.store import Directories, Store
from experiment.run.grid.hardware import Machine, Resources
from experiment.run.machine import reading_processes

if TYPE_CHECKING:  # these import torch
    from experiment.run.cell.data import Data
    from experiment.run.cell.torchrun_group import Crew


@dataclass(frozen=True)
class Context:
    """One experiment, as the processes that compute its cells see it.

    Attributes:
        threads: with which a cell is computed.
        resources: that a cell occupies.
        crew: the processes that train together with this one, under torchrun.
        cells: number of cells that are computed at the same time on this machine.
        loaded: datasets in memory by folder; the experiments of one process share it.
    """

    store: Store
    directories: Directories
    machine: Machine
    threads: int = 1
    resources: Resources = field(default_factory=lambda: Resources(1, 0.0))
    retry_failed: bool = False
    crew: Crew | None = None
    cells: int = 1
    loaded: dict[Path, Data] = field(default_factory=dict, repr=False, compare=False)

    @property
    def data(self) -> Data:
        """The datasets of the experiment, which are loaded when they are first used."""
        from experiment.run.cell.data import Data

        folder = self.directories.datasets
        if folder not in self.loaded:
            readers = reading_processes(self.cells, self.threads)
            self.loaded[folder] = Data(folder, self.machine.device, readers=readers)
        return self.loaded[folder]


def max_threads(contexts: Sequence[Context]) -> int:
    return max(context.threads for context in contexts)
