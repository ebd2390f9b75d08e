"""What a cell takes up of a machine, and so how many are computed at once: part of no key, it decides no number."""

from __future__ import annotations

from dataclasses import dataclass

from experiment.config import Parameters
from experiment.run.grid.plan import Machine

_ROUNDING = 1e-9  # 1 / 0.1 cells share a GPU: ten, not nine


@dataclass(frozen=True)
class Resources:
    """Cores and GPUs of one cell; a share of a GPU, in (0, 1], where it computes on one, else 0."""

    cpus: int
    gpus: float

    def fit(self, cpus: float, gpus: float) -> int:
        """How many cells a machine with so many cores and GPUs bears at once; no cell is spread over two GPUs."""
        by_cores = int(cpus // self.cpus)
        return by_cores if self.gpus == 0 else min(by_cores, self.fit_gpus(int(gpus)))

    def fit_gpus(self, gpus: int) -> int:
        """How many cells so many GPUs bear at once."""
        return gpus * int(1 / self.gpus + _ROUNDING)


def resources_of(p: Parameters, machine: Machine) -> Resources:
    """What the parameter file says, else as many cores as threads and, on GPUs, a whole one."""
    given = p.resources
    gpus = (1.0 if given.gpus is None else given.gpus) if machine.kind == "cuda" else 0.0
    return Resources(given.cpus or p.threads, gpus)
