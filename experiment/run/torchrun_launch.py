"""Whether this process is one of several that torchrun has started, and which. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun, and whoever does its work, sets


@dataclass(frozen=True)
class Launch:
    """One of several processes that train together.

    Attributes:
        rank: which of all (the first leads, the others serve it). local_rank: which of those on this machine.
        size: how many there are. local_size: how many on this machine.
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
        """Whether it says what all on this machine have found wrong."""
        return self.local_rank == 0


def find_launch(environment: Mapping[str, str] | None = None) -> Launch | None:
    """What torchrun says of this process; None where it was started alone."""
    said = os.environ if environment is None else environment
    if any(not said.get(name) for name in NAMES) or int(said["WORLD_SIZE"]) == 1:
        return None
    rank, size = int(said["RANK"]), int(said["WORLD_SIZE"])
    return Launch(rank, int(said.get("LOCAL_RANK", rank)), size, int(said.get("LOCAL_WORLD_SIZE", size)))
