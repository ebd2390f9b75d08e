"""How a training is run, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class SchedulerSpec:
    """A learning rate scheduler: `step_kwargs` are arguments in epochs, `kwargs` all others."""

    type: str
    kwargs: Mapping[str, object] = field(default_factory=dict)
    step_kwargs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class PenaltySpec:
    """A penalty l1 ||W||_1 + l2 / 2 ||W||^2 on the weights W of the layers that match one of the patterns.

    Attributes:
        layers: patterns of module names, as fnmatch takes them.
        proximal: whether l1 is a soft threshold after the step, which gives exact zeros; else a subgradient.
        decoupled: whether l2 decays the weights beside the step, as AdamW does; else it is a gradient.
    """

    layers: tuple[str, ...] = ("*",)
    l1: float = 0.0
    l2: float = 0.0
    proximal: bool = False
    decoupled: bool = False


@dataclass(frozen=True)
class DistillationSpec:
    """How much a network learns from its teacher: the temperature T, and the share alpha of the teacher's term."""

    temperature: float = 4.0
    alpha: float = 0.7


@dataclass(frozen=True)
class TrainSettings:
    """One training.

    Attributes:
        num_epochs, start_epoch: epochs `start_epoch` to `num_epochs - 1` are run, at the learning rates that the whole
            schedule has there.
        batch_size: images a step.
        optimizer, schedulers, loss: names of torch's classes (and WarmupLR, PolyLR) with their arguments.
        precision: of the forward pass; weights and optimizer stay float32.
        early_stop_epoch: from this epoch on the weights of best validation accuracy are kept; None: the last ones.
        channels_last: memory format of images and weights while training.
        compiled: whether torch.compile makes kernels for the training steps.
        penalties: on layers' weights. distillation: how a teacher is listened to; None: there is none.
    """

    num_epochs: int
    batch_size: int
    start_epoch: int = 0
    optimizer: str = "SGD"
    optimizer_kwargs: Mapping[str, object] = field(default_factory=dict)
    schedulers: tuple[SchedulerSpec, ...] = ()
    loss: str = "CrossEntropyLoss"
    loss_kwargs: Mapping[str, object] = field(default_factory=dict)
    precision: Precision = "fp32"
    early_stop_epoch: int | None = None
    channels_last: bool = False
    compiled: bool = False
    # Left out of the repr, by which older checkpoints know their training.
    penalties: tuple[PenaltySpec, ...] = field(default=(), repr=False)
    distillation: DistillationSpec | None = field(default=None, repr=False)
