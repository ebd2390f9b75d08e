"""The training loop.

records = train(network, splits.train, settings, valid=splits.valid, stream=("train", seed, net), device=device)
metrics = evaluate(network, splits.test, loss="CrossEntropyLoss", loss_kwargs={}, device=device, precision="fp32")
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Images, count_batches
from experiment.errors import ConfigError, DataError, TrainingDiverged
from experiment.random_streams import Part, seeded
from experiment.training.check import check_training
from experiment.training.checkpoint import Checkpoint, EpochRecord, Progress, save_whole
from experiment.training.distil import make_teacher
from experiment.training.distributed import ALONE, Team
from experiment.training.evaluation import Metrics, evaluate, memory_format
from experiment.training.factories import loss_weight, make_loss, make_optimizer, mean_loss, summed
from experiment.training.penalty import make_penalties
from experiment.training.schedule import Schedule
from experiment.training.settings import Precision, SchedulerSpec, TrainSettings
from experiment.training.step import Trainer, compiled, step

__all__ = [
    "EpochRecord",
    "Metrics",
    "Precision",
    "SchedulerSpec",
    "TrainSettings",
    "check_training",
    "evaluate",
    "train",
]

CHECK_EVERY = 50  # batches between two looks at the loss, each of which waits for the device


def train(
    network: nn.Module,
    data: Images,
    settings: TrainSettings,
    *,
    valid: Images | None,
    stream: tuple[Part, ...],
    device: torch.device | str,
    checkpoint: Path | None = None,
    rewind_to: tuple[int, Path] | None = None,
    until: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    measure: Callable[[int], None] | None = None,
    team: Team = ALONE,
    adjust_gradients: Callable[[], None] | None = None,
    teacher: nn.Module | None = None,
) -> list[EpochRecord]:
    """Train a network in place; it is left in eval mode.

    Epoch e draws its data order, augmentation and dropout from (stream, e) alone, so a training that is interrupted and
    taken up again ends with the same weights, bit for bit on the CPU.

    Args:
        valid: images that early stopping and ReduceLROnPlateau decide by; never the test part.
        checkpoint: file to continue from, if it is there, and to write after epochs.
        rewind_to: an epoch and the file for the state_dict at its start.
        until: an epoch at whose start to stop, the schedule being that of all epochs; early stopping has no say then.
        on_batch: told the number of images just trained on. on_epoch: told every epoch that is run now.
        measure: told after every epoch how many have been run, before the checkpoint that counts it: what it writes to
            a file is never behind that, though epochs may be measured again after an interruption.
        team: the processes that train this network together. All call this with a network of the same structure, whose
            weights the first one gives, and the same data and settings; files and callbacks are the first one's alone.
        adjust_gradients: called in every step between the backward pass and the optimizer, to add terms that are no
            part of the loss to the `grad` of the network's parameters.
        teacher: the trained network that `settings.distillation` is about; it is left as it is.

    Returns: a record for every epoch from `settings.start_epoch` on, those before an interruption too.

    Raises:
        TrainingDiverged: the loss or the weights became NaN or infinite.
        ConfigError: the settings are wrong. DataError: too few images.
    """
    device = torch.device(device)
    network.to(device)
    if (settings.distillation is None) != (teacher is None):
        raise ConfigError("distillation: needs a teacher, and a teacher needs it. Give both or none of them.")
    steps_per_epoch = _count_steps(data, settings, valid, team)
    optimizer = make_optimizer(network.parameters(), settings.optimizer, settings.optimizer_kwargs)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    loss = make_loss(settings.loss, settings.loss_kwargs, device)
    with (
        memory_format(network, settings.channels_last),
        reproducible(device),
        team.training(network) as model,
        Checkpoint(checkpoint, network, optimizer, scaler, settings, stream, len(data)) as saved,
    ):
        progress = saved.load(rewind_to)
        if team.size > 1:
            progress = saved.restore(team.first_state(saved.state(progress), device))
        schedule = Schedule(settings, steps_per_epoch, [record.valid_loss for record in progress.records])
        trainer = Trainer(
            network, optimizer, schedule, loss, scaler, settings, device, team, compiled(model, settings),
            adjust_gradients, make_penalties(network, settings.penalties),
            None if teacher is None else make_teacher(teacher, settings, device, team),
        )  # fmt: skip
        last = settings.num_epochs if until is None else min(until, settings.num_epochs)
        for epoch in range(settings.start_epoch + len(progress.records), last):
            _save_rewind(network, epoch, rewind_to)
            record = _run_epoch(trainer, data, valid, epoch, (*stream, "epoch", epoch), on_batch)
            progress.records.append(record)
            _keep_best(progress, network, settings)
            if measure is not None:
                measure(len(progress.records))
            saved.save(progress, last=epoch == last - 1)
            if on_epoch is not None:
                on_epoch(record)
        _save_rewind(network, last, rewind_to)
        if progress.best_state is not None and until is None:
            network.load_state_dict(progress.best_state)
    require_finite_weights(network)
    network.eval()
    return progress.records


def _run_epoch(
    t: Trainer,
    data: Images,
    valid: Images | None,
    epoch: int,
    stream: tuple[Part, ...],
    on_batch: Callable[[int], None] | None,
) -> EpochRecord:
    """Train on all images once, then validate."""
    started = time.monotonic()
    loss_sum, weight_sum = torch.zeros(2, dtype=torch.float64, device=t.device)
    hits = torch.zeros((), dtype=torch.int64, device=t.device)
    images, rate = 0, 0.0
    t.network.train()
    batch_size, channels_last = t.settings.batch_size, t.settings.channels_last
    with seeded(*t.team.own(stream), device=t.device):  # dropout has no generator of its own
        batches = data.batches(batch_size, stream=stream, channels_last=channels_last, share=t.team.share)
        for i, (x, part) in enumerate(batches):
            rate = t.schedule.learning_rate
            value, logits, y = step(t, x, part, min(batch_size, len(data) - i * batch_size))
            weight = loss_weight(t.loss, y)
            loss_sum.add_(summed(t.loss, value, weight))
            weight_sum.add_(weight)
            hits.add_((logits.argmax(dim=1) == y).sum())
            images += len(y)
            if (i + 1) % CHECK_EVERY == 0:
                require_finite_loss(loss_sum, epoch, rate)
            if on_batch is not None:
                on_batch(len(y))
        require_finite_loss(loss_sum, epoch, rate)
    measured = _validate(t, valid) if valid is not None else None
    t.schedule.end_epoch(measured.loss if measured else None)
    return EpochRecord(
        epoch=epoch,
        learning_rate=rate,
        loss=mean_loss(loss_sum, weight_sum),
        top1=int(hits) / images,
        valid_loss=measured.loss if measured else None,
        valid_top1=measured.top1 if measured else None,
        valid_top5=measured.top5 if measured else None,
        images=images,
        seconds=time.monotonic() - started,
    )


def _validate(t: Trainer, valid: Images) -> Metrics:
    return evaluate(
        t.network, valid, loss=t.settings.loss, loss_kwargs=t.settings.loss_kwargs, device=t.device,
        precision=t.settings.precision, channels_last=t.settings.channels_last, team=t.team,
    )  # fmt: skip


def _count_steps(data: Images, settings: TrainSettings, valid: Images | None, team: Team) -> int:
    """Steps an epoch; refuses what cannot be trained."""
    if settings.early_stop_epoch is not None and settings.early_stop_epoch < settings.num_epochs and valid is None:
        raise ConfigError("earlyStopEpoch: there is no validation part to choose the best epoch by.")
    steps = count_batches(len(data), settings.batch_size, training=True)
    if steps == 0:
        raise DataError(f"{len(data)} training images are too few to train on.")
    if problem := team.problem(len(data), settings.batch_size):
        raise ConfigError(problem)
    return steps


def _save_rewind(network: nn.Module, epoch: int, rewind_to: tuple[int, Path] | None) -> None:
    if rewind_to is not None and rewind_to[0] == epoch:
        save_whole(rewind_to[1], network.state_dict())


def _keep_best(progress: Progress, network: nn.Module, settings: TrainSettings) -> None:
    """Copy the weights if the last epoch is the best that early stopping may choose; of equals it is the later one."""
    record = progress.records[-1]
    if settings.early_stop_epoch is None or record.epoch < settings.early_stop_epoch or record.valid_top1 is None:
        return
    if record.valid_top1 >= progress.best_top1:
        progress.best_top1 = record.valid_top1
        progress.best_state = {name: value.detach().clone() for name, value in network.state_dict().items()}


def require_finite_loss(loss_sum: Tensor, epoch: int, rate: float) -> None:
    value = float(loss_sum)
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"training diverged in epoch {epoch} (counted from 0): the loss became {value} at learning rate {rate:g}. "
            "Try a smaller learning rate, a longer warmup, or precision: fp32. Images that are not finite do the same."
        )


def require_finite_weights(network: nn.Module) -> None:
    """The last step may ruin the weights, and no loss comes after it to tell."""
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingDiverged(f"training diverged: {name} is not finite. Try a smaller learning rate.")


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On CUDA the convolution algorithms that give the same result every time."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
    ):
        yield
