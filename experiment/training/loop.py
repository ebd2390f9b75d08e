"""The training loop.

with TrainingLoop(network, train, settings, valid=valid, stream=("train", seed), device="cpu") as training:
    for record in training.epochs():
        print(record.epoch, record.loss, record.valid["top1"])
        training.save_checkpoint()

If nothing happens between epochs: records = TrainingLoop(...).run()
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Images, count_batches
from experiment.errors import ConfigError, DataError
from experiment.random_streams import Part, seeded
from experiment.tasks import find_task
from experiment.tensor_file import load_tensors
from experiment.training.checkpoint import Checkpoint
from experiment.training.distil import make_teacher
from experiment.training.distributed import ALONE, Team
from experiment.training.evaluation import validate
from experiment.training.memory_format import memory_format
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings
from experiment.training.step import TrainingImages, TrainingStep, compiled, compiler, require_finite_weights, run_steps


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training.

    Attributes:
        learning_rate: of the last step.
        loss: on the augmented training batches.
        values: name -> figure of the primary metric on these batches; empty if it needs all outputs at once.
        valid_loss: after the epoch; None without a validation part.
        valid: name -> figure of every metric after the epoch; empty without a validation part.
        images: number of training images used.
        seconds: of training and validation.
    """

    epoch: int
    learning_rate: float
    loss: float
    values: Mapping[str, float]
    valid_loss: float | None
    valid: Mapping[str, float]
    images: int
    seconds: float


class TrainingLoop:
    """Trains a network in place, one epoch at a time.

    Epoch e draws data order, augmentation and dropout from (stream, e) alone. A training that is interrupted and
    continued ends with the same weights, bit for bit on the CPU.

    Args:
        network: moved to the device; in eval mode after the last epoch.
        valid: images for early stopping and ReduceLROnPlateau; never the test part.
        stream: random stream of all draws.
        checkpoint: file to continue from, written by `save_checkpoint`.
        team: the processes that train this network together. Each of them makes a loop with the same data and
            settings and a network of the same structure; weights and checkpoint are those of the first process.
        teacher: the trained network for `settings.distillation`; not modified.
        earlier: the first epochs of this training, with another structure of the network. The optimizer starts anew.
        begins: called with the number of every epoch before it begins.

    Raises:
        ConfigError: the settings contradict each other or the data.
        DataError: there are too few images.
    """

    def __init__(
        self,
        network: nn.Module,
        images: TrainingImages,
        settings: TrainSettings,
        *,
        valid: Images | None,
        stream: tuple[Part, ...],
        device: torch.device | str,
        checkpoint: Path | None = None,
        team: Team = ALONE,
        teacher: nn.Module | None = None,
        earlier: Sequence[EpochRecord] = (),
        begins: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        if (settings.distillation is None) != (teacher is None):
            raise ConfigError("distillation: needs both its settings and a teacher. Give both, or neither.")
        if settings.early_stop_epoch is not None and settings.early_stop_epoch < settings.num_epochs and valid is None:
            raise ConfigError("earlyStopEpoch: needs a validation part to choose the best epoch, and there is none.")
        if problem := team.problem(len(images), settings.batch_size):
            raise ConfigError(problem)
        self._steps_per_epoch = count_batches(len(images), settings.batch_size, training=True)
        if self._steps_per_epoch == 0:
            raise DataError(f"{len(images)} training images are too few to train on.")
        self._network, self._images, self._settings, self._valid = network, images, settings, valid
        self._stream, self._device, self._team, self._teacher = stream, torch.device(device), team, teacher
        shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
        about = (settings, stream, len(images), shapes, *([len(earlier)] if earlier else []))
        self._checkpoint = Checkpoint(checkpoint, about)
        self._earlier, self._begins = list(earlier), begins
        self.records: list[EpochRecord] = []
        self._task = find_task(settings.task)
        self._best: float | None = None
        self._best_weights: dict[str, Tensor] | None = None

    def __enter__(self) -> TrainingLoop:
        settings, team, network = self._settings, self._team, self._network.to(self._device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(compiler(settings))
            stack.enter_context(memory_format(network, settings.channels_last))
            stack.enter_context(deterministic_convolutions(self._device))
            model = stack.enter_context(team.training(network))
            self.records = [*self._earlier]
            saved = self._checkpoint.load()
            if team.size > 1:
                start = {"network": network.state_dict(), "records": self._plain_records()}
                saved = team.first_state(saved or start, self._device)
            if saved is not None:
                self.records = [EpochRecord(**record) for record in saved["records"]]
            schedule = Schedule(settings, self._steps_per_epoch, [record.valid_loss for record in self.records])
            teacher = None if self._teacher is None else make_teacher(self._teacher, settings, self._device, team)
            self._step = TrainingStep(
                network, settings, schedule, self._device, model=compiled(model, settings), team=team, teacher=teacher
            )
            if saved is not None:
                self._restore(saved)
            self._contexts = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._contexts:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                self._checkpoint.save_rest()

    @property
    def next_epoch(self) -> int:
        """The next epoch to train, also while `epochs` yields the record of the previous one."""
        return self._settings.start_epoch + len(self.records)

    def epochs(self, until: int | None = None) -> Iterator[EpochRecord]:
        """Run the remaining epochs; yields the record of each.

        Args:
            until: stop at the start of this epoch of the same schedule, without early stopping.
        Raises: TrainingDiverged: loss or weights became NaN or infinite.
        """
        last = self._settings.num_epochs if until is None else min(until, self._settings.num_epochs)
        while self.next_epoch < last:
            self._begins(self.next_epoch)
            record = self._run_epoch()
            self.records.append(record)
            self._keep_best(record)
            yield record
        if self._best_weights is not None and until is None:
            load_tensors(self._network, self._best_weights)
        require_finite_weights(self._network)
        self._network.eval()

    def run(self, until: int | None = None) -> list[EpochRecord]:
        """Run all remaining epochs; returns the records of all epochs, including those before an interruption.

        Args:
            until: see `epochs`.
        """
        with self:
            for _ in self.epochs(until):
                self.save_checkpoint()
        return self.records

    def save_checkpoint(self) -> None:
        """Write the checkpoint after an epoch, unless the file is recent for the time that writing takes."""
        state = {
            "network": self._network.state_dict(),
            "optimizer": self._step.optimizer.state_dict(),
            "scaler": self._step.scaler.state_dict(),
            "records": self._plain_records(),
            "best": self._best,
            "best_weights": self._best_weights,
        }
        self._checkpoint.save(state, optional=self.next_epoch < self._settings.num_epochs)

    def _plain_records(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(record) for record in self.records]

    def _run_epoch(self) -> EpochRecord:
        started, settings, epoch = time.monotonic(), self._settings, self.next_epoch
        stream = (*self._stream, "epoch", epoch)
        size, count = settings.batch_size, len(self._images)
        self._network.train()
        with seeded(*self._team.own(stream), device=self._device):  # for dropout, which does not accept a generator
            batches = self._images.batches(
                size, stream=stream, channels_last=settings.channels_last, share=self._team.share
            )
            trained = run_steps(
                self._step, ((x, y, min(size, count - i * size)) for i, (x, y) in enumerate(batches)), epoch
            )
        images = self._valid
        valid = None if images is None else validate(self._network, images, settings, self._device, self._team)
        self._step.schedule.end_epoch(valid.loss if valid else None)
        return EpochRecord(
            epoch=epoch,
            learning_rate=trained.learning_rate,
            loss=trained.loss,
            values=trained.values,
            valid_loss=valid.loss if valid else None,
            valid=valid.values if valid else {},
            images=trained.images,
            seconds=time.monotonic() - started,
        )

    def _keep_best(self, record: EpochRecord) -> None:
        """Copy the weights if this is the best epoch that early stopping may choose; the later one of equals."""
        first = self._settings.early_stop_epoch
        if first is None or record.epoch < first or not record.valid:
            return
        metric = self._task.primary
        value = record.valid[metric.name]
        if not math.isnan(value) and (self._best is None or metric.is_as_good(value, self._best)):
            self._best = value
            self._best_weights = {name: value.detach().clone() for name, value in self._network.state_dict().items()}

    def _restore(self, saved: dict[str, Any]) -> None:
        load_tensors(self._network, saved["network"])
        if "optimizer" in saved:
            self._step.optimizer.load_state_dict(saved["optimizer"])
            self._step.scaler.load_state_dict(saved["scaler"])
            self._best, self._best_weights = saved["best"], saved["best_weights"]


@contextlib.contextmanager
def deterministic_convolutions(device: torch.device) -> Iterator[None]:
    """Select the deterministic convolution algorithms of cuDNN; no effect on the CPU."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
    ):
        yield
