"""The network of a cell in mode lc: the reference network goes through the L-C optimizer."""

import time
from pathlib import Path

import torch

from experiment.config import Retraining
from experiment.datasets.image_data import count_batches
from experiment.files import make_folder
from experiment.lc.optimizer import LCOptimizer
from experiment.lc.projection import MethodProjection, Projected, condensed_weights, weights_of
from experiment.run.cell.chain_compression import ChainCompression
from experiment.run.cell.events import ReportEvent, cell_name
from experiment.run.cell.outcome import CellNetwork, epoch_done
from experiment.run.cell.train_network import ReportedImages
from experiment.run.cell.training_settings import lc_settings, train_settings
from experiment.run.grid.cells import Cell


def learn_compress(
    compression: ChainCompression, cell: Cell, block: Retraining, folder: Path, report: ReportEvent
) -> CellNetwork:
    """Make the network of a cell; it has no records if compression removes nothing, since there is no L-step then.

    Raises: InfeasibleBudget, CompressionError, TrainingDiverged.
    """
    p, chain, reference = compression.parameters, compression.chain, compression.reference
    stream = ("method", p.seed, cell.net, cell.repetition)
    project = MethodProjection(
        compression.method, cell.keep, p.experiments.budget, compression.meter, reference.state.example,
        reference.count, compression.calibration(), stream, chain.method.recalibrate, reference.state.unfused,
    )  # fmt: skip
    started = time.perf_counter()
    direct = best = project(reference.network, p.lc.mu_init)
    compressed_at = time.perf_counter()
    optimizer = None
    if chain.method.entry.kind == "none" or not _is_unchanged(direct, compression):
        optimizer = _make_optimizer(cell, block, project, compression, folder, report)
        for record in optimizer.steps():
            report(epoch_done(cell_name(cell), record.iteration, p.lc.steps, record, p))
        best = optimizer.best
    assert best.compressed is not None
    records = optimizer.records if optimizer else []
    epochs = records[-1].epochs if records else 0
    facts = {
        "epochs": int(epochs) if epochs == int(epochs) else epochs,
        "seconds_compress": round(compressed_at - started, 3),
        "seconds_retrain": round(time.perf_counter() - compressed_at, 3) if optimizer else 0.0,
    }
    return CellNetwork(best.compressed, direct.network, records, None, facts)


def _is_unchanged(direct: Projected, compression: ChainCompression) -> bool:
    reference = compression.reference
    weights = condensed_weights(reference.network, reference.state.example)
    return all(torch.equal(weights[name], weight) for name, weight in weights_of(direct.dense, weights).items())


def _make_optimizer(
    cell: Cell,
    block: Retraining,
    project: MethodProjection,
    compression: ChainCompression,
    folder: Path,
    report: ReportEvent,
) -> LCOptimizer:
    p, context, reference = compression.parameters, compression.context, compression.reference
    splits = context.data.splits(p, block)
    make_folder(folder)
    return LCOptimizer(
        reference.network, project, ReportedImages(splits.train, report), splits.valid,
        lc_settings(p.lc, count_batches(len(splits.train), block.batch_size, training=True)),
        train_settings(p, block, context.machine), example=reference.state.example,
        stream=("retrain", p.seed, cell.net, cell.repetition), checkpoint=folder / "checkpoint.pt",
    )  # fmt: skip
