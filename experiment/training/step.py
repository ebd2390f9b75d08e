"""One step of training: forward, backward, whatever adds to the loss and the gradients, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment.training.distil import Teacher, mixed_loss
from experiment.training.distributed import Team
from experiment.training.evaluation import forward_precision
from experiment.training.factories import Loss
from experiment.training.penalty import Penalties
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings


@dataclass(frozen=True)
class Trainer:
    """What every step of one training uses."""

    network: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss
    scaler: torch.amp.GradScaler
    settings: TrainSettings
    device: torch.device
    team: Team
    model: Callable[[Tensor], Tensor]  # what a step calls: the network, what shares its training out, or that compiled
    adjust_gradients: Callable[[], None] | None = None
    penalties: Penalties = field(default_factory=Penalties)
    teacher: Teacher | None = None


def step(t: Trainer, x: Tensor, part: Tensor, num_images: int) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the optimizer on a batch of N = `num_images`, of which this process has part.

    Returns: its loss, its logits (N, classes), detached, and its labels (N,), still on the device.
    """
    t.schedule.write(t.optimizer)
    t.optimizer.zero_grad(set_to_none=True)
    with forward_precision(t.device, t.settings.precision):
        logits = t.model(x)
    logits, y = t.team.whole(logits.float(), part, num_images)
    value = t.loss(logits, y)
    if t.teacher is not None and t.settings.distillation is not None:
        taught, _ = t.team.whole(t.teacher(x), part, num_images)
        value = mixed_loss(value, logits, taught, t.settings.distillation, t.settings.loss_kwargs.get("reduction"))
    torch.autograd.backward(t.scaler.scale(value))
    if t.adjust_gradients is not None or t.penalties.terms:
        t.scaler.unscale_(t.optimizer)  # what is added is not scaled
    if t.adjust_gradients is not None:
        t.adjust_gradients()
    t.penalties.add_gradients()
    _optimize(t)
    t.schedule.step()
    return value.detach(), logits.detach(), y


def _optimize(t: Trainer) -> None:
    """The optimizer's step, and what penalties do beside it."""
    if not t.penalties.beside_the_step:
        t.scaler.step(t.optimizer)
        t.scaler.update()
        return
    rate, scale = t.schedule.learning_rate, t.scaler.get_scale()
    decay = t.penalties.decay(rate)
    t.scaler.step(t.optimizer)
    t.scaler.update()
    if t.scaler.get_scale() >= scale:  # else float16 gradients have overflowed, and the optimizer has not moved either
        t.penalties.shrink(rate, decay)


def compiled(model: nn.Module, settings: TrainSettings) -> Callable[[Tensor], Tensor]:
    """The forward pass, compiled where that is asked for; parameters and buffers stay those of the network.

    Compiled for the batch sizes as they come: the last batch of an epoch may be smaller than the others.
    """
    return torch.compile(model, dynamic=None) if settings.compiled else model
