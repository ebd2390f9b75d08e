"""Blocks of a parameter file as the settings of a training."""

from experiment.config import LearnCompress, Parameters, Penalty, Retraining, Training
from experiment.lc.schedule import LCSettings
from experiment.run.grid.hardware import Machine, resolved_channels_last, resolved_precision
from experiment.run.grid.task_name import task_name
from experiment.tasks import find_task
from experiment.training.settings import DistillationSpec, PenaltySpec, SchedulerSpec, TrainSettings


def train_settings(p: Parameters, training: Training, machine: Machine) -> TrainSettings:
    """The settings of the block `training` or `retraining` of a file on this machine."""
    task = task_name(p)
    distillation = training.distillation if isinstance(training, Retraining) else None
    return TrainSettings(
        num_epochs=training.num_epochs,
        start_epoch=training.start_epoch,
        batch_size=training.batch_size,
        task=task,
        optimizer=training.optimizer,
        optimizer_kwargs=dict(training.optimizer_kwargs),
        schedulers=tuple(SchedulerSpec(s.type, dict(s.kwargs), dict(s.step_kwargs)) for s in training.lr_schedulers),
        loss=training.loss or find_task(task).losses[0],
        loss_kwargs=dict(training.loss_kwargs),
        precision=resolved_precision(training, machine),
        early_stop_epoch=training.early_stop_epoch,
        channels_last=resolved_channels_last(training, machine),
        compiled=training.compiled,
        penalties=tuple(penalty_spec(block) for block in training.penalties),
        distillation=DistillationSpec(distillation.temperature, distillation.alpha) if distillation else None,
    )


def penalty_spec(block: Penalty) -> PenaltySpec:
    """The settings of an entry of `penalties`."""
    how = block.how or ()
    return PenaltySpec(tuple(block.layers), block.l1 or 0.0, block.l2 or 0.0, "proximal" in how, "decoupled" in how)


def lc_settings(block: LearnCompress, minibatches_per_epoch: int) -> LCSettings:
    """The settings of the block `lc`."""
    first, others = block.counts(minibatches_per_epoch)
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
