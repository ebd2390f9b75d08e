"""Whether torchrun started this process, and its ranks. Imports nothing heavy: --help must be quick."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun and its replacements


@dataclass(frozen=True)
class Launch:
    """One of several processes that train together.

    Attributes:
        rank: among all processes; rank 0 leads, the others serve it.
        local_rank: among the processes on this machine.
        size: number of processes.
        local_size: number of processes on this machine.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this process prints the errors that all processes on this machine find."""
        return self.local_rank == 0


def find_launch(environment: Mapping[str, str] | None = None) -> Launch | None:
    """The ranks that torchrun assigned to this process; None if it was started alone."""
    variables = os.environ if environment is None else environment
    if any(not variables.get(name) for name in NAMES) or int(variables["WORLD_SIZE"]) == 1:
        return None
    rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    return Launch(rank, int(variables.get("LOCAL_RANK", rank)), size, int(variables.get("LOCAL_WORLD_SIZE", size)))
