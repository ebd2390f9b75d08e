"""The L-step: training for a number of minibatches, which may stop and resume anywhere in an epoch."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Batch, count_batches
from experiment.errors import DataError
from experiment.inputs import Inputs
from experiment.progress import progress
from experiment.random_streams import Part, seeded
from experiment.training.distil import make_teacher
from experiment.training.distributed import ALONE
from experiment.training.loop import deterministic_convolutions
from experiment.training.memory_format import memory_format
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings
from experiment.training.step import (
    TrainingImages,
    TrainingStep,
    TrainMetrics,
    compiled,
    require_finite_weights,
    run_steps,
)


class MinibatchTraining:
    """Trains a network in place on consecutive minibatches, with a new optimizer for each L-step.

    Each epoch draws data order and augmentation from (stream, epoch), as in a `TrainingLoop`. Dropout draws from
    (stream, first minibatch of the L-step). Training resumed between two L-steps ends with the same weights.

    Args:
        settings: shared by all L-steps.
        done: number of minibatches already processed.
        teacher: the trained network for `settings.distillation`.
    Raises: DataError: there are too few images.
    """

    def __init__(
        self,
        network: nn.Module,
        images: TrainingImages,
        settings: TrainSettings,
        *,
        stream: tuple[Part, ...],
        device: torch.device,
        done: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        self._network, self._images, self._settings = network, images, settings
        self._stream, self._device = stream, device
        self._model = compiled(network, settings)
        self._teacher = None if teacher is None else make_teacher(teacher, settings, device, ALONE)
        self.per_epoch = count_batches(len(images), settings.batch_size, training=True)
        if self.per_epoch == 0:
            raise DataError(f"{len(images)} training images are too few to train on.")
        self.done = done
        self._batches: Iterator[Batch] | None = None

    def run(self, count: int, settings: TrainSettings, adjust_gradients: Callable[[], None]) -> TrainMetrics:
        """Train on the next `count` minibatches; the network is in eval mode afterwards.

        Args:
            settings: with the learning rate of this L-step; its schedulers count minibatches.
            adjust_gradients: see `TrainingStep`.
        Raises: TrainingDiverged: loss or weights became NaN or infinite.
        """
        with deterministic_convolutions(self._device), memory_format(self._network, settings.channels_last):
            step = TrainingStep(
                self._network, settings, Schedule(settings, 1), self._device,
                model=self._model, teacher=self._teacher, adjust_gradients=adjust_gradients,
            )  # fmt: skip
            with seeded(*self._stream, "iteration", self.done, device=self._device):
                self._network.train()
                metrics = run_steps(step, self._take(count), self.done // self.per_epoch)
        require_finite_weights(self._network)
        self._network.eval()
        return metrics

    def _take(self, count: int) -> Iterator[tuple[Inputs, Tensor, int]]:
        for _ in progress(range(count), "learning, by batch"):
            x, y = self._next()
            yield x, y, len(y)

    def _next(self) -> Batch:
        epoch, place = divmod(self.done, self.per_epoch)
        if self._batches is not None and place > 0:
            batch = next(self._batches)
        else:
            stream = (*self._stream, "epoch", epoch)
            batches = self._images.batches(
                self._settings.batch_size, stream=stream, channels_last=self._settings.channels_last
            )
            self._batches = islice(batches, place, None)
            with seeded(*stream, "opening"):  # loaders draw a seed, which must not shift the draws of dropout
                batch = next(self._batches)
        self.done += 1
        return batch
