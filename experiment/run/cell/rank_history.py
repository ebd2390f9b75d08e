"""ranks.csv: the effective ranks of every layer over the epochs of a training, where a parameter file asks for them."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from torch import nn

from experiment.config import Parameters
from experiment.effective_rank import layer_ranks
from experiment.errors import Damaged
from experiment.files import read_file, set_aside
from experiment.run.cell.outcome import write_rows

log = logging.getLogger("experiment")

NAME = "ranks.csv"
COLUMNS = ("epoch", "layer", "effective_rank", "stable_rank", "full_rank")


class RankLog:
    """The rows of a training under way. The file is rewritten whole after every epoch, so that a kill loses none.

    Args:
        folder: where the training's checkpoint lies; what an earlier process wrote there is taken up.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._rows: dict[int, list[dict[str, object]]] = {}
        with suppress(FileNotFoundError):
            rows = _read(self._path)
            if rows is None:
                self._set_aside()
            self._rows = rows or {}

    def note(self, epoch: int, network: nn.Module) -> None:
        """Take down the ranks after so many epochs, in the place of what a killed process may have written of them."""
        ranks = [asdict(rank) for rank in layer_ranks(network)]
        if any(len(rows) != len(ranks) for rows in self._rows.values()):  # cut in its first epoch
            self._set_aside()
            self._rows = {}
        last = max(self._rows, default=epoch)
        if epoch > last + 1:
            log.warning("%s: the ranks of epochs %d to %d are lost.", self._path, last + 1, epoch - 1)
        self._rows[epoch] = [{"epoch": epoch} | {c: rank[c] for c in COLUMNS[1:]} for rank in ranks]
        self.write(self._path.parent)

    def _set_aside(self) -> None:
        log.warning("%s is damaged: set aside as %s.", self._path, set_aside(self._path).name)

    def write(self, folder: Path) -> None:
        """Write ranks.csv into a folder, in the order of epochs."""
        write_rows(folder / NAME, [row for epoch in sorted(self._rows) for row in self._rows[epoch]], COLUMNS)


def _read(path: Path) -> dict[int, list[dict[str, object]]] | None:
    """The rows of every epoch; None where a row, or one of an epoch's, is missing or not whole."""
    rows: dict[int, list[dict[str, object]]] = {}
    try:
        text = read_file(path).decode("utf-8")
        for row in csv.DictReader(io.StringIO(text)):
            [float(row[column]) for column in COLUMNS if column != "layer"]
            if None in row:  # more fields than columns
                return None
            rows.setdefault(int(row["epoch"]), []).append(dict(row))
    except (Damaged, ValueError, TypeError, KeyError, csv.Error):
        return None
    layers = {len(of_epoch) for of_epoch in rows.values()}
    return rows if text.endswith("\n") and len(layers) == 1 else None


def rank_log(p: Parameters, folder: Path) -> RankLog | None:
    """The log, or None where nobody asks for ranks."""
    return RankLog(folder) if "rank" in p.experiments.measure else None


def write_reference_ranks(p: Parameters, trained: Path, network: nn.Module, folder: Path) -> None:
    """Write a reference's ranks.csv into a folder, if anybody asks for it.

    Args:
        trained: its folder of trained networks; where nobody asked for ranks when it was trained, those of the trained
            network are the only rows.
    """
    if "rank" not in p.experiments.measure:
        return
    if (trained / NAME).is_file():
        shutil.copy2(trained / NAME, folder / NAME)
    else:
        RankLog(folder).note(p.training.num_epochs, network)
