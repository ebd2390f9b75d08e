"""The network of a cell: compressed and retrained, in steps or at once, or made by the L-C optimizer."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from experiment.config import Retraining
from experiment.config.modes import retraining, rewinding
from experiment.config.tuning import trials
from experiment.errors import StoreError
from experiment.layers.copied_network import copied
from experiment.layers.plan import State
from experiment.run.cell.chain_compression import ChainCompression
from experiment.run.cell.events import Advanced, Note, ReportEvent, cell_name
from experiment.run.cell.gradual import compress_gradually
from experiment.run.cell.learn_compress import learn_compress
from experiment.run.cell.outcome import CellNetwork, read_history, task_of, valid_metrics
from experiment.run.cell.rank_history import rank_log
from experiment.run.cell.retrain import removes_nothing, retrain
from experiment.run.cell.start_state import random_state, rewound_state
from experiment.run.cell.tuning import Tuning
from experiment.run.disk.network_file import load_packed, read_weights
from experiment.run.grid.cells import Cell
from experiment.training.loop import EpochRecord

MAKERS = {"lc": learn_compress, "gradual": compress_gradually}  # by mode; all others compress once, and retrain
NOTHING_REMOVED = "removes nothing from the network that it starts from: it is tested without retraining"


def make_cell_network(cell: Cell, compression: ChainCompression, folder: Path, report: ReportEvent) -> CellNetwork:
    """Make the network of a cell.

    Args:
        folder: for the checkpoint and other files from which an interrupted computation continues.
    Raises: InfeasibleBudget, CompressionError, TrainingDiverged.
    """
    p = compression.parameters
    make = partial(MAKERS.get(p.experiments.mode, _compress_and_retrain), compression)
    if p.retraining.tune is None:
        made = make(cell, retraining(p), folder, report)
    else:
        measure = partial(valid_metrics, p=p, data=compression.context.data)
        made = Tuning(cell, trials(p), folder, make, measure, task_of(p).primary).run(report)
    if cell.epochs_retrain and not made.records:
        made.facts["notice"] = NOTHING_REMOVED
        report(Note(f"{cell_name(cell)}: {NOTHING_REMOVED}"))
        report(Advanced(cell.epochs_retrain))
    return made


def _compress_and_retrain(
    compression: ChainCompression, cell: Cell, block: Retraining, folder: Path, report: ReportEvent
) -> CellNetwork:
    p = compression.parameters
    started = time.perf_counter()
    compressor, compressed = compression.compress(cell, report)
    network = direct = compressed.network
    epochs = 0 if removes_nothing(network, compression) else cell.epochs_retrain
    if epochs and rewinding(p.experiments) != "none":
        network = compressor.instantiate(compressed.plan, _other_weights(cell, compression))
    elif epochs:
        direct = copied(network)
    compressed_at = time.perf_counter()
    ranks = rank_log(p, folder)
    if ranks is not None:
        ranks.note(0, network)
    records: list[EpochRecord] = []
    earlier = _retrained_earlier(cell, network, compression, report) if epochs and ranks is None else None
    if earlier is not None:
        network, records = earlier
    elif epochs:
        records = retrain(cell, block, network, compressed.plan, compression, folder, ranks, report)
    facts = {
        "epochs": epochs,
        "seconds_compress": round(compressed_at - started, 3),
        "seconds_retrain": round(time.perf_counter() - compressed_at, 3),
    }
    return CellNetwork(replace(compressed, network=network), direct, records, ranks, facts)


def _other_weights(cell: Cell, compression: ChainCompression) -> State:
    """The weights to retrain instead of those that compression left."""
    p, reference = compression.parameters, compression.reference
    if rewinding(p.experiments) == "random":
        return random_state(reference, p, cell.net, cell.repetition)
    return rewound_state(reference, compression.chain.reference)


def _retrained_earlier(
    cell: Cell, network: nn.Module, compression: ChainCompression, report: ReportEvent
) -> tuple[nn.Module, list[EpochRecord]] | None:
    """The retrained network with its epochs, from a cell that differs in its test data only; None without one."""
    if compression.parameters.experiments.search is not None or compression.parameters.retraining.tune is not None:
        return None
    folder = compression.context.store.tested_otherwise(cell)
    if folder is None:
        return None
    retrained = copied(network)
    try:
        load_packed(retrained, read_weights(folder / "network.pt")[1], folder / "network.pt")
        records = read_history(folder / "history.csv")
    except StoreError:  # damaged: retrain
        return None
    report(Note(f"{cell_name(cell)}: takes the network of {folder.name}, which was tested on other data"))
    report(Advanced(cell.epochs_retrain))
    return retrained.eval(), records
