"""A cell of mode lc: the reference network goes through the L-C optimizer, and its best compressed form is stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from experiment.config import LearnCompress, Parameters, retraining
from experiment.datasets.image_data import count_batches
from experiment.files import make_folder
from experiment.lc.lc_checkpoint import Iteration
from experiment.lc.optimizer import LCOptimizer
from experiment.lc.projection import MethodProjection, condensed_weights, weights_of
from experiment.lc.settings import LCSettings
from experiment.methods.base import Calibration, Compressed, Method
from experiment.methods.configure import MethodSpec
from experiment.run.cell.events import Advanced, Report, epoch_callbacks
from experiment.run.cell.reference import Context, Reference, train_settings
from experiment.run.grid.plan import Cell
from experiment.training.checkpoint import EpochRecord


@dataclass(frozen=True)
class Learnt:
    """What a cell of mode lc comes to.

    Attributes:
        best: the compressed network of smallest validation loss. direct: that of step 0, which has learnt nothing.
        records: a row a step; none where compression takes nothing away, and nothing was learnt for that.
        seconds_compress: of the direct compression. seconds_learn: of all else.
    """

    best: Compressed
    direct: nn.Module
    records: list[Iteration]
    seconds_compress: float
    seconds_learn: float

    @property
    def epochs(self) -> float:
        """How many times all training images were learnt from; a whole number where it is one."""
        epochs = self.records[-1].epochs if self.records else 0
        return int(epochs) if epochs == int(epochs) else epochs


def learn_compress(
    cell: Cell,
    spec: MethodSpec,
    method: Method,
    calibration: Calibration,
    reference: Reference,
    p: Parameters,
    context: Context,
    report: Report,
    name: str,
) -> Learnt:
    """Compute one cell; continues after the last step of an interrupted process.

    Raises: InfeasibleBudget, CompressionError, TrainingDiverged.
    """
    projection = MethodProjection(
        method, cell.keep, p.experiments.budget, reference.state.example, reference.count, calibration,
        ("method", p.seed, cell.net, cell.repetition), spec.recalibrate,
    )  # fmt: skip
    started = time.perf_counter()
    with context.clock.part("compression"):
        direct = projection(reference.network)
    assert direct.compressed is not None
    seconds_compress = time.perf_counter() - started
    weights = condensed_weights(reference.network, reference.state.example)
    same = all(torch.equal(weights[n], w) for n, w in weights_of(direct.dense, weights).items())
    if same and spec.entry.kind != "none":  # a control that keeps everything is meant to learn
        report(Advanced(cell.epochs_retrain))
        return Learnt(direct.compressed, direct.network, [], seconds_compress, 0.0)
    started = time.perf_counter()
    optimizer = _optimizer(cell, projection, reference, p, context, report, name)
    best = optimizer.run().compressed
    assert best is not None
    return Learnt(
        best, direct.network, optimizer.statistics, seconds_compress, time.perf_counter() - started
    )  # fmt: skip


def _optimizer(
    cell: Cell,
    projection: MethodProjection,
    reference: Reference,
    p: Parameters,
    context: Context,
    report: Report,
    name: str,
) -> LCOptimizer:
    block = retraining(p)
    splits = context.data.splits(p, block)
    settings = lc_settings(p.lc, count_batches(len(splits.train), block.batch_size, training=True))
    on_batch, on_epoch = epoch_callbacks(name, settings.steps, len(splits.train), report)
    return LCOptimizer(
        reference.network, projection, splits.train, splits.valid, settings, train_settings(block, context.machine),
        example=reference.state.example, stream=("retrain", p.seed, cell.net, cell.repetition),
        device=context.machine.device, checkpoint=_checkpoint(cell, context), on_batch=on_batch,
        on_iteration=lambda row: on_epoch(_as_epoch(row)), clock=context.clock,
    )  # fmt: skip


def lc_settings(block: LearnCompress, per_epoch: int) -> LCSettings:
    """The block `lc` as plain values, for a training of so many minibatches an epoch."""
    first, others = block.counts(per_epoch)
    return LCSettings(
        steps=block.steps,
        iterations=others,
        iterations_first=first,
        mu_init=block.mu_init,
        mu_multiplier=block.mu_multiplier,
        mu_cap=block.mu_cap,
        lr_decay=block.decay,
        lr_milestones=tuple(block.lr_milestones),
        lr_end=block.lr_end,
    )


def _checkpoint(cell: Cell, context: Context) -> Path:
    partial = context.store.partial(cell.key)
    make_folder(partial)
    return partial / "checkpoint.pt"


def _as_epoch(row: Iteration) -> EpochRecord:
    """A step as those who watch are told of it."""
    nothing = float("nan")
    return EpochRecord(
        epoch=row.iteration,
        learning_rate=row.learning_rate or 0.0,
        loss=nothing if row.loss is None else row.loss,
        top1=nothing if row.top1 is None else row.top1,
        valid_loss=row.valid_loss,
        valid_top1=row.valid_top1,
        valid_top5=row.valid_top5,
        images=row.images,
        seconds=row.seconds,
    )
