"""Settings of a training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
Compiled = Literal[False, True, "reduce-overhead"]


@dataclass(frozen=True)
class SchedulerSpec:
    """A learning rate scheduler: `step_kwargs` are its arguments in epochs, `kwargs` all others."""

    type: str
    kwargs: Mapping[str, object] = field(default_factory=dict)
    step_kwargs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class PenaltySpec:
    """A penalty l1 ||W||_1 + l2 / 2 ||W||^2 on the weights W of some layers.

    Attributes:
        layers: patterns of module names, for `fnmatch`.
        proximal: apply l1 as soft threshold after the step, which gives exact zeros, instead of as subgradient.
        decoupled: apply l2 as decoupled weight decay, as AdamW does, instead of as gradient.
    """

    layers: tuple[str, ...] = ("*",)
    l1: float = 0.0
    l2: float = 0.0
    proximal: bool = False
    decoupled: bool = False


@dataclass(frozen=True)
class DistillationSpec:
    """Knowledge distillation: temperature T, and weight alpha of the teacher's term in the loss."""

    temperature: float = 4.0
    alpha: float = 0.7


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training.

    Attributes:
        num_epochs, start_epoch: epochs `start_epoch` to `num_epochs - 1` are run, at their learning rates in the whole
            schedule.
        batch_size: number of images in a batch.
        optimizer, schedulers, loss: names of torch's classes (or WarmupLR, PolyLR) with their arguments.
        precision: of the forward pass; weights and optimizer state are float32.
        early_stop_epoch: keep the weights of the epoch with the best validation metric, from this epoch on; None:
            keep those of the last epoch.
        channels_last: memory format of images and weights during training.
        compiled: whether the forward pass is compiled by `torch.compile`, or the mode in which it is.
        penalties: on the weights of layers.
        distillation: None to train without a teacher.
    """

    num_epochs: int
    batch_size: int
    task: str = "classification"
    start_epoch: int = 0
    optimizer: str = "SGD"
    optimizer_kwargs: Mapping[str, object] = field(default_factory=dict)
    schedulers: tuple[SchedulerSpec, ...] = ()
    loss: str = "CrossEntropyLoss"
    loss_kwargs: Mapping[str, object] = field(default_factory=dict)
    precision: Precision = "fp32"
    early_stop_epoch: int | None = None
    channels_last: bool = False
    compiled: Compiled = False
    penalties: tuple[PenaltySpec, ...] = ()
    distillation: DistillationSpec | None = None
