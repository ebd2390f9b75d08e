"""What every worker must know before it is given work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.run.disk.store import Directories
from experiment.run.grid.plan import Machine
from experiment.run.grid.resources import Resources

if TYPE_CHECKING:  # torch comes with it
    from experiment.run.cell.torchrun_group import Crew


@dataclass(frozen=True)
class Site:
    """Where one experiment lies, with how many threads its cells are computed, and what each takes up of a machine."""

    folder: Path
    directories: Directories
    threads: int
    resources: Resources


@dataclass(frozen=True)
class Setup:
    """What a worker must know: the site of every experiment, the device to compute on, and who trains with it.

    Attributes:
        cells: how many are computed at once on this machine.
    """

    sites: tuple[Site, ...]
    machine: Machine
    retry_failed: bool
    crew: Crew | None = None
    cells: int = 1

    @property
    def most_threads(self) -> int:
        return max(site.threads for site in self.sites)
