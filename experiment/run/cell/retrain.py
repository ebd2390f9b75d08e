"""The retraining of a cell's network, whole or in parts that follow each other."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from experiment.config import Retraining
from experiment.config.modes import rewinding
from experiment.files import make_folder
from experiment.layers.masks import same_support
from experiment.layers.plan import Plan
from experiment.run.cell.chain_compression import ChainCompression
from experiment.run.cell.events import ReportEvent, cell_name
from experiment.run.cell.outcome import epoch_done
from experiment.run.cell.rank_history import RankLog
from experiment.run.cell.torchrun_group import Job
from experiment.run.cell.train_network import training_loop
from experiment.run.grid.cells import Cell
from experiment.training.loop import EpochRecord

CHECKPOINT = "checkpoint.pt"


def retrain(
    cell: Cell,
    block: Retraining,
    network: nn.Module,
    plan: Plan,
    compression: ChainCompression,
    folder: Path,
    ranks: RankLog | None,
    report: ReportEvent,
    *,
    checkpoint: str = CHECKPOINT,
    earlier: Sequence[EpochRecord] = (),
    until: int | None = None,
) -> list[EpochRecord]:
    """Train a compressed network in place; returns the records of all epochs.

    Args:
        block: how.
        plan: its structure.
        folder: for the file `checkpoint`, from which an interrupted training continues.
        earlier: the epochs that another structure of the network was trained for.
        until: the epoch at whose start to stop.
    """
    p, context = compression.parameters, compression.context
    make_folder(folder)
    stream = ("retrain", p.seed, cell.net, cell.repetition)
    job = Job(p, block, plan.to_data(), stream, context.directories.datasets, until)
    teacher = None if block.distillation is None else compression.reference.network
    with training_loop(
        network, job, context, report, checkpoint=folder / checkpoint, teacher=teacher, earlier=earlier
    ) as loop:
        for record in loop.epochs(until):
            if ranks is not None:
                ranks.note(len(loop.records), network)
            loop.save_checkpoint()
            report(epoch_done(cell_name(cell), record.epoch, block.num_epochs, record, p))
    return loop.records


def removes_nothing(network: nn.Module, compression: ChainCompression) -> bool:
    """Whether retraining would repeat the training before; not for methods that only control for retraining."""
    if compression.chain.method.entry.kind == "none" or rewinding(compression.parameters.experiments) == "random":
        return False
    return same_support(network, compression.start)
