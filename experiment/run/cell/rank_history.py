"""ranks.csv: the effective ranks of every layer after each epoch of a training, if a parameter file requests them."""

import csv
import shutil
from dataclasses import asdict
from pathlib import Path

from torch import nn

from experiment.config import Parameters
from experiment.effective_rank import layer_ranks
from experiment.errors import log
from experiment.files import set_aside
from experiment.run.cell.outcome import write_rows

NAME = "ranks.csv"
COLUMNS = ("epoch", "layer", "effective_rank", "stable_rank", "full_rank")


class RankLog:
    """The ranks of a training; the file is written after each epoch and read by a process that continues it.

    Args:
        folder: of the checkpoint of the training.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._rows: dict[int, list[dict[str, object]]] = {}  # by epoch
        if not self._path.exists():
            return
        try:
            for row in csv.DictReader(self._path.read_text(encoding="utf-8").splitlines()):
                self._rows.setdefault(int(row["epoch"]), []).append(dict(row))
        except (ValueError, KeyError, csv.Error):
            log.warning("%s is damaged; renamed to %s.", self._path, set_aside(self._path).name)
            self._rows = {}

    def note(self, epoch: int, network: nn.Module) -> None:
        """Record the ranks after `epoch` epochs; replaces what a killed process wrote about this epoch."""
        ranks = [asdict(rank) for rank in layer_ranks(network)]
        self._rows[epoch] = [{"epoch": epoch} | {c: rank[c] for c in COLUMNS[1:]} for rank in ranks]
        self.write(self._path.parent)

    def write(self, folder: Path) -> None:
        """Write ranks.csv into a folder, in the order of epochs."""
        write_rows(folder / NAME, [row for epoch in sorted(self._rows) for row in self._rows[epoch]], COLUMNS)


def rank_log(p: Parameters, folder: Path) -> RankLog | None:
    """The log; None if ranks are not requested."""
    return RankLog(folder) if "rank" in p.experiments.measure else None


def write_reference_ranks(p: Parameters, trained: Path, network: nn.Module, folder: Path) -> None:
    """Write ranks.csv of a reference network into a folder, if ranks are requested.

    Args:
        trained: folder of the trained network; if it was trained without ranks, only those after training are written.
    """
    if "rank" not in p.experiments.measure:
        return
    if (trained / NAME).is_file():
        shutil.copy2(trained / NAME, folder / NAME)
    else:
        RankLog(folder).note(p.training.num_epochs, network)
