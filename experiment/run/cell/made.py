"""A cell's network as it was made, before anybody has tested it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from experiment.lc.lc_checkpoint import Iteration
from experiment.methods.base import Compressed
from experiment.run.cell.rank_history import RankLog
from experiment.training.loop import EpochRecord


@dataclass(frozen=True)
class Made:
    """What compressing, and retraining or learning in turn, came to.

    Attributes:
        compressed: the cell's network, its plan and its size.
        direct: the network before it learnt anything; the same object where nothing was learnt.
        records: a row an epoch, or a step of mode lc.
        ranks: the effective ranks on the way, where they are asked for.
        facts: what the cell's result says of how it was made: epochs, seconds, a notice.
    """

    compressed: Compressed
    direct: nn.Module
    records: list[EpochRecord] | list[Iteration]
    ranks: RankLog | None
    facts: dict[str, Any]
