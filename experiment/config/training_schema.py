"""The training block of a parameter file: its keys, types, ranges and defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from experiment.config.block import Block, Epoch, Name, Whole


class Component(Block):
    """A transform or metric with its arguments."""

    type: Name
    """Its name, as in torchvision (transforms)."""
    kwargs: dict[str, Any] = {}
    """Its arguments by name."""


class Scheduler(Block):
    """A learning-rate scheduler, stepped after every batch."""

    type: Name
    """A scheduler of torch.optim.lr_scheduler, WarmupLR or PolyLR."""
    kwargs: dict[str, Any] = {}
    """Its arguments by name."""
    step_kwargs: dict[str, Any] = {}
    """Its arguments that count steps, given in epochs."""


def _top_1_and_5() -> list[Component]:
    return [Component(type="TopK", kwargs={"topk": k}) for k in (1, 5)]


class Training(Block):
    """How the network is trained."""

    batch_size: Annotated[Whole, Field(ge=1)]
    """Images a step."""
    test_batch_size: Annotated[Whole, Field(ge=1)] | None = None
    """Images a batch when testing; default: 256, on a GPU as many as fit."""
    num_epochs: Epoch
    """Epochs of the whole schedule; the epochs startEpoch to numEpochs are run."""
    start_epoch: Epoch = 0
    """Retraining only: the epoch of the schedule at which to start (learning-rate rewinding)."""
    optimizer: Name
    """An optimizer of torch.optim."""
    optimizer_kwargs: dict[str, Any] = {}
    """Its arguments by name (lr, momentum, weight_decay, ...)."""
    lr_schedulers: list[Scheduler] = []
    """Learning-rate schedulers, stepped in this order."""
    loss: Name = "CrossEntropyLoss"
    """A loss of torch.nn."""
    loss_kwargs: dict[str, Any] = {}
    """Its arguments by name."""
    metrics_test: list[Component] = Field(default_factory=_top_1_and_5)
    """Metrics of the tests; the retraining block always has those of the training block."""
    transforms_train: list[Component] = []
    """Transforms of the training images, before transformsFinal."""
    transforms_test: list[Component] = []
    """Transforms of the validation and test images, before transformsFinal."""
    transforms_final: list[Component] = []
    """Transforms of all images at the end (ToTensor, Normalize)."""
    enable_amp: bool = Field(default=True, alias="enableAMP")
    """Whether a lower precision may be used where it helps; false means fp32."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of forward and backward passes."""
    early_stop_epoch: Epoch | None = None
    """From this epoch on, the state with the best validation accuracy is kept; default: the last state."""
    channels_last: bool = False
    """Whether images and weights lie in memory channel by channel of each pixel (faster for some networks)."""
    compiled: bool = Field(default=False, alias="compile")
    """Whether torch.compile makes kernels for every network that is trained: minutes at first, then faster steps."""
