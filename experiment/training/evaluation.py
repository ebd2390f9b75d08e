"""Loss and metrics of a network on a dataset."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Batch, Images
from experiment.errors import ConfigError, DataError
from experiment.inputs import Inputs, call_network
from experiment.layers.forward_pass import evaluating
from experiment.registry import InputShape
from experiment.tasks import find_task
from experiment.tasks.classification import TASK as CLASSIFICATION
from experiment.tasks.task import Task
from experiment.training.distributed import ALONE, Team
from experiment.training.factories import Loss, loss_weight, make_loss, mean_loss, summed
from experiment.training.memory_format import memory_format
from experiment.training.settings import Precision, TrainSettings

CUDA_BATCH_SIZE = 4096  # halved until it fits
CPU_BATCH_SIZE = 128  # larger batches outgrow the caches
MOST_VALUES = {"cuda": 620_000_000, "cpu": 20_000_000}  # of the inputs of a batch: fewer images if they are large
_DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Metrics:
    """Mean loss and metrics over `samples` inputs; with class weights the mean is weighted.

    Attributes:
        values: name -> figure of every metric of the task, the primary one first.
    """

    loss: float
    values: Mapping[str, float]
    samples: int

    @property
    def columns(self) -> dict[str, float]:
        """The loss and all metrics."""
        return {"loss": self.loss, **self.values}


class Observer(Protocol):
    """Sees the outputs of an evaluation, batch by batch in fixed order."""

    def restart(self) -> None:
        """The evaluation begins, possibly for the second time with smaller batches."""

    def observe(self, start: int, x: Inputs, outputs: Tensor, y: Tensor, criterion: Loss) -> None:
        """A batch of inputs, outputs (N, K, ...) and targets (N, ...), the first of which is sample `start`."""


def evaluate(
    network: nn.Module,
    data: Images,
    *,
    task: Task = CLASSIFICATION,
    loss: str | None = None,
    loss_kwargs: Mapping[str, object] | None = None,
    device: torch.device | str,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    channels_last: bool | None = None,
    team: Team = ALONE,
    observers: Sequence[Observer] = (),
) -> Metrics:
    """Evaluate a network in eval mode; its mode is restored afterwards.

    Args:
        task: which outputs are scored, and how.
        loss: its name; default: that of the task.
        batch_size: halved until a batch fits into memory; default: 4096 on CUDA, 128 on the CPU, fewer if images have
            more than 224x224 pixels. The last digits of the loss depend on it.
        channels_last: memory format of images and weights; default: True on the CPU, where it is faster.
        team: the processes that evaluate together; each returns the metrics over all images.
        observers: see the outputs of every batch in the same pass.

    Raises: DataError: there are no images.
    """
    if len(data) == 0:
        raise DataError("there are no images to evaluate the network on.")
    device = torch.device(device)
    size = batch_size or _batch_size(data, device)
    channels_last = device.type == "cpu" if channels_last is None else channels_last
    criterion = make_loss(loss or task.losses[0], {**task.loss_kwargs, **(loss_kwargs or {})}, device)
    score = _Score(task, criterion, device, precision, observers)
    while True:
        batches = data.batches(size, stream=None, channels_last=channels_last, share=team.share)
        try:
            with memory_format(network, channels_last), evaluating(network), torch.inference_mode():
                totals = score.over(batches, network, team, data)
                break
        except torch.OutOfMemoryError:
            if size == 1 or team.size > 1:  # the other processes would continue with larger batches
                raise
        size //= 2  # outside the handler, whose traceback keeps the tensors alive
        torch.cuda.empty_cache()
    values = {m.name: m.figure(total) for m, total in zip(task.metrics, totals[1:], strict=True)}
    return Metrics(mean_loss(*totals[0]), values, len(data))


def _batch_size(data: Images, device: torch.device) -> int:
    size, most = (CUDA_BATCH_SIZE if device.type == "cuda" else CPU_BATCH_SIZE), MOST_VALUES.get(device.type)
    form = data.input_shape
    if most is None or not isinstance(form, InputShape):
        return size
    return max(1, min(size, most // max(1, math.prod(form))))


def validate(
    network: nn.Module, images: Images, settings: TrainSettings, device: torch.device, team: Team = ALONE
) -> Metrics:
    """Evaluate with the loss, at the precision and in the memory format of a training."""
    return evaluate(
        network, images, task=find_task(settings.task), loss=settings.loss, loss_kwargs=settings.loss_kwargs,
        device=device, precision=settings.precision, channels_last=settings.channels_last, team=team,
    )  # fmt: skip


@dataclass(frozen=True)
class _Score:
    """What is summed over the batches of an evaluation."""

    task: Task
    criterion: Loss
    device: torch.device
    precision: Precision
    observers: Sequence[Observer]

    def over(self, batches: Iterable[Batch], network: nn.Module, team: Team, data: Images) -> list[Tensor]:
        """The sums of all batches of all processes, on the CPU: of the loss (sum, divisor), and of every metric."""
        found: list[list[Tensor]] = [[] for _ in range(1 + len(self.task.metrics))]
        start = 0
        for observer in self.observers:
            observer.restart()
        for batch in batches:
            for kept, part, joined in zip(found, self._of(batch, network, start), self._joined, strict=True):
                if joined or not kept:
                    kept.append(part)
                else:
                    kept[0] += part
            start += len(batch[1])
        if not found[0]:  # more processes than batches: sums of the right size
            found = [[torch.zeros_like(part)[: 0 if joined else None]]
                     for part, joined in zip(self._of(data.first(1), network), self._joined, strict=True)]  # fmt: skip
        totals = [
            team.joined(torch.cat(kept)) if joined else team.total(kept[0])
            for kept, joined in zip(found, self._joined, strict=True)
        ]
        return [total.cpu() for total in totals]

    @property
    def _joined(self) -> list[bool]:
        return [False, *(metric.joined for metric in self.task.metrics)]

    def _of(self, batch: Batch, network: nn.Module, start: int | None = None) -> list[Tensor]:
        """Of one batch, from sample `start` on: the loss (sum, divisor), and what each metric makes of the outputs."""
        x, y = batch
        with forward_precision(self.device, self.precision):
            outputs = self.task.outputs(call_network(network, x))
        outputs = outputs.float()
        weight = loss_weight(self.criterion, y)
        loss = torch.stack([summed(self.criterion, self.criterion(outputs, y), weight), weight])
        if start is not None:
            for observer in self.observers:
                observer.observe(start, x, outputs, y, self.criterion)
        return [loss, *(metric.update(outputs, y) for metric in self.task.metrics)]


@contextmanager
def forward_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Autocast to bfloat16 or float16; no effect for float32.

    Raises: ConfigError: float16 without CUDA.
    """
    if precision == "fp32":
        yield
        return
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision: fp16 needs a CUDA device. Got {device.type}. Use bf16 or fp32.")
    with torch.autocast(device.type, dtype=_DTYPES[precision]):
        yield
