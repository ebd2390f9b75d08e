"""A training counted in minibatches, which stops and goes on anywhere in an epoch, with a new optimizer each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from experiment.datasets.image_data import Batch, Images, count_batches
from experiment.errors import DataError
from experiment.progress import progress
from experiment.random_streams import Part, seeded
from experiment.training.distil import make_teacher
from experiment.training.distributed import ALONE
from experiment.training.evaluation import memory_format
from experiment.training.factories import loss_weight, make_loss, make_optimizer, mean_loss, summed
from experiment.training.loop import (
    CHECK_EVERY,
    reproducible,
    require_finite_loss,
    require_finite_weights,
)
from experiment.training.penalty import make_penalties
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings
from experiment.training.step import Trainer, compiled, step


@dataclass(frozen=True)
class Stretch:
    """Some iterations as they went: loss and top-1 on the training batches as they came, augmented.

    `learning_rate` is that of the last step, `images` how many were trained on.
    """

    learning_rate: float
    loss: float
    top1: float
    images: int


class Iterations:
    """The minibatches of a training, epoch after epoch, as `train` draws them: from (stream, epoch) alone.

    What a stretch draws for itself (dropout) comes from (stream, its first iteration), so that a training taken up
    again between two stretches ends with the same weights.

    Args:
        network: trained in place.
        settings: what is the same in all stretches.
        done: iterations made before.
        on_batch: told the number of images just trained on.
        teacher: see `train`.
    Raises: DataError: too few images.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Images,
        settings: TrainSettings,
        *,
        stream: tuple[Part, ...],
        device: torch.device,
        done: int = 0,
        on_batch: Callable[[int], None] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self._network, self._data, self._settings, self._stream = network, data, settings, stream
        self._device, self._on_batch = device, on_batch
        self._model = compiled(network, settings)
        self._penalties = make_penalties(network, settings.penalties)
        self._teacher = None if teacher is None else make_teacher(teacher, settings, device, ALONE)
        self.per_epoch = count_batches(len(data), settings.batch_size, training=True)
        if self.per_epoch == 0:
            raise DataError(f"{len(data)} training images are too few to train on.")
        self.done = done
        self._batches: Iterator[Batch] | None = None

    def run(self, count: int, settings: TrainSettings, adjust_gradients: Callable[[], None] | None) -> Stretch:
        """Make `count` iterations with a new optimizer; the network is left in eval mode.

        Args:
            settings: with the learning rate of this stretch; its schedulers count iterations.
            adjust_gradients: see `train`.
        Raises: TrainingDiverged: the loss or the weights became NaN or infinite.
        """
        with reproducible(self._device), memory_format(self._network, settings.channels_last):
            trainer = self._trainer(settings, adjust_gradients)
            with seeded(*self._stream, "iteration", self.done, device=self._device):
                self._network.train()
                stretch = self._steps(trainer, count)
        require_finite_weights(self._network)
        self._network.eval()
        return stretch

    def _trainer(self, settings: TrainSettings, adjust_gradients: Callable[[], None] | None) -> Trainer:
        return Trainer(
            network=self._network,
            optimizer=make_optimizer(self._network.parameters(), settings.optimizer, settings.optimizer_kwargs),
            schedule=Schedule(settings, 1),
            loss=make_loss(settings.loss, settings.loss_kwargs, self._device),
            scaler=torch.amp.GradScaler(self._device.type, enabled=settings.precision == "fp16"),
            settings=settings,
            device=self._device,
            team=ALONE,
            model=self._model,
            adjust_gradients=adjust_gradients,
            penalties=self._penalties,
            teacher=self._teacher,
        )

    def _steps(self, t: Trainer, count: int) -> Stretch:
        loss_sum, weight_sum = torch.zeros(2, dtype=torch.float64, device=self._device)
        hits = torch.zeros((), dtype=torch.int64, device=self._device)
        images, rate = 0, t.schedule.learning_rate
        for i in progress(range(count), "learning, by batch"):
            epoch = self.done // self.per_epoch
            x, y = self._next()
            rate = t.schedule.learning_rate
            value, logits, y = step(t, x, y, len(y))
            weight = loss_weight(t.loss, y)
            loss_sum.add_(summed(t.loss, value, weight))
            weight_sum.add_(weight)
            hits.add_((logits.argmax(dim=1) == y).sum())
            images += len(y)
            if (i + 1) % CHECK_EVERY == 0 or i + 1 == count:
                require_finite_loss(loss_sum, epoch, rate)
            if self._on_batch is not None:
                self._on_batch(len(y))
        return Stretch(rate, mean_loss(loss_sum, weight_sum), int(hits) / max(images, 1), images)

    def _next(self) -> Batch:
        """The next batch; an epoch is opened where the last one has ended, or in its middle if it was left there."""
        epoch, place = divmod(self.done, self.per_epoch)
        if self._batches is None or place == 0:
            stream = (*self._stream, "epoch", epoch)
            batches = self._data.batches(
                self._settings.batch_size, stream=stream, channels_last=self._settings.channels_last
            )
            self._batches = islice(batches, place, None)
            with seeded(*stream, "opening"):  # loaders draw a seed, which must not shift what dropout draws
                batch = next(self._batches)
        else:
            batch = next(self._batches)
        self.done += 1
        return batch
