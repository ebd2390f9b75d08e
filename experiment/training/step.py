"""Training steps: forward pass, loss, gradients and optimizer, on one batch after another."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Batch, Share, Stream
from experiment.errors import TrainingDiverged
from experiment.inputs import Inputs, call_network
from experiment.tasks import find_task
from experiment.training import factories
from experiment.training.distil import Teacher, mixed_loss
from experiment.training.distributed import ALONE, Team
from experiment.training.evaluation import forward_precision
from experiment.training.penalty import make_penalties
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings

CHECK_EVERY = 50  # steps between two checks of the loss, each of which waits for the device


class TrainingImages(Protocol):
    """The part of `Images` that training uses."""

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        """See `Images.batches`."""


@dataclass(frozen=True)
class TrainMetrics:
    """Metrics of consecutive steps, on the augmented batches.

    Attributes:
        learning_rate: of the last step.
        values: name -> figure of the primary metric; empty if it needs the outputs of all batches at once.
    """

    learning_rate: float
    loss: float
    values: Mapping[str, float]
    images: int


class TrainingStep:
    """One optimizer step on a batch, and everything that all steps of a training share.

    Args:
        model: computes the outputs: the network itself, or a wrapper that is distributed or compiled.
        adjust_gradients: called between backward pass and optimizer; adds terms that are not part of the loss to the
            `grad` of parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: TrainSettings,
        schedule: Schedule,
        device: torch.device,
        *,
        model: Callable[..., Any],
        team: Team = ALONE,
        teacher: Teacher | None = None,
        adjust_gradients: Callable[[], None] | None = None,
    ) -> None:
        self.settings, self.schedule, self.device, self.team = settings, schedule, device, team
        self.optimizer = factories.make_optimizer(network.parameters(), settings.optimizer, settings.optimizer_kwargs)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.task = find_task(settings.task)
        self.loss = factories.make_loss(settings.loss, {**self.task.loss_kwargs, **settings.loss_kwargs}, device)
        self._model, self._teacher, self._adjust_gradients = model, teacher, adjust_gradients
        self._penalties = make_penalties(network, settings.penalties)

    def __call__(self, x: Inputs, y: Tensor, num_images: int) -> tuple[Tensor, Tensor, Tensor]:
        """Make one step.

        Args:
            x, y: the inputs and targets of the batch that this process computes; all of them if it trains alone.
            num_images: N, the size of the whole batch.
        Returns: loss, outputs (N, K, ...), detached, and targets (N, ...) of the whole batch, on the device.
        """
        self.schedule.write(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        with forward_precision(self.device, self.settings.precision):
            raw = call_network(self._model, x)
        outputs, targets = self.team.whole(self.task.outputs(raw).float(), y, num_images)
        loss = self.loss(outputs, targets)
        auxiliary, weight = factories.auxiliary_outputs(raw), getattr(self.loss, "auxiliary", None)
        if auxiliary is not None and weight is not None:
            loss = loss + weight * self.loss(self.team.whole(auxiliary.float(), y, num_images)[0], targets)
        if self._teacher is not None and self.settings.distillation is not None:
            taught, _ = self.team.whole(self._teacher(x), y, num_images)
            loss = mixed_loss(
                loss, outputs, taught, self.settings.distillation, self.task.distribution,
                reduction=self.settings.loss_kwargs.get("reduction"),
                counted=factories.counted_targets(self.loss, targets),
            )  # fmt: skip
        torch.autograd.backward(self.scaler.scale(loss))
        if self._adjust_gradients is not None or self._penalties.terms:
            self.scaler.unscale_(self.optimizer)  # added terms are not scaled
        if self._adjust_gradients is not None:
            self._adjust_gradients()
        self._penalties.add_gradients()
        self._update_weights()
        self.schedule.step()
        return loss.detach(), outputs.detach(), targets

    def _update_weights(self) -> None:
        rate, acting = self.schedule.learning_rate, self._penalties.act_at_step
        scale = self.scaler.get_scale() if acting else 0.0  # reading it waits for the device
        decay = self._penalties.decay(rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if acting and self.scaler.get_scale() >= scale:  # else gradients overflowed: no step
            self._penalties.shrink(rate, decay)


def run_steps(step: TrainingStep, batches: Iterable[tuple[Inputs, Tensor, int]], epoch: int) -> TrainMetrics:
    """Make a step on each batch (see `TrainingStep.__call__`).

    Args:
        epoch: the current epoch, for the error.
    Raises: TrainingDiverged: the loss became NaN or infinite.
    """
    loss_sum, weight_sum = torch.zeros(2, dtype=torch.float64, device=step.device)
    metric, total = step.task.primary, None
    images, rate = 0, step.schedule.learning_rate
    for i, (x, y_part, num_images) in enumerate(batches):
        rate = step.schedule.learning_rate
        loss, outputs, y = step(x, y_part, num_images)
        weight = factories.loss_weight(step.loss, y)
        loss_sum.add_(factories.summed(step.loss, loss, weight))
        weight_sum.add_(weight)
        if not metric.joined:
            sums = metric.update(outputs, y)
            total = sums if total is None else total.add_(sums)
        images += len(y)
        if (i + 1) % CHECK_EVERY == 0:
            _require_finite_loss(loss_sum, epoch, rate)
    _require_finite_loss(loss_sum / weight_sum, epoch, rate)
    values = {} if total is None else {metric.name: metric.figure(total.cpu())}
    return TrainMetrics(rate, factories.mean_loss(loss_sum, weight_sum), values, images)


def compiled(model: nn.Module, settings: TrainSettings) -> Callable[..., Any]:
    """The forward pass, compiled if the settings ask for it; parameters and buffers remain those of the network."""
    if settings.compiled == "reduce-overhead":
        return torch.compile(model, dynamic=False, mode=settings.compiled)  # CUDA graphs have fixed shapes
    return torch.compile(model, dynamic=None) if settings.compiled else model  # None: the last batch may be smaller


@contextlib.contextmanager
def compiler(settings: TrainSettings) -> Iterator[None]:
    """At the end of a training, torch forgets what it compiled: it refuses more than a few networks of one class."""
    try:
        yield
    finally:
        if settings.compiled:
            torch.compiler.reset()


def require_finite_weights(network: nn.Module) -> None:
    """Check the weights after the last step, which no loss follows.

    Raises: TrainingDiverged: a weight is NaN or infinite.
    """
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingDiverged(f"training diverged: {name} is not finite. Try a smaller learning rate.")


def _require_finite_loss(loss_sum: Tensor, epoch: int, rate: float) -> None:
    value = float(loss_sum)
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"training diverged in epoch {epoch} (counted from 0): the loss became {value} at learning rate {rate:g}. "
            "Try a smaller learning rate, a longer warmup, or precision: fp32. Images with NaN or "
            "infinite values also cause this, and targets of which the loss ignores all."
        )
