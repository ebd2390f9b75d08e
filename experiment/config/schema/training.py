"""The training block of a parameter file: its keys, types, ranges and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from experiment.config.schema.block import Block, Epoch, Name, Number, Whole
from experiment.escaping import is_number


def _no_number_as_text(value: object) -> object:
    """An argument as it is; no optimizer, scheduler, loss or transform takes a text that reads as a number."""
    for within, text in _texts(value):
        if is_number(text):
            raise PydanticCustomError("number_as_text", "must be a number without quotes", {"within": within})
    return value


def _texts(value: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All texts in a value, each with its path."""
    if isinstance(value, str):
        yield (), value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from (((key, *within), text) for within, text in _texts(part))


Arguments = dict[str, Annotated[Any, BeforeValidator(_no_number_as_text)]]


class Component(Block):
    """A transform or metric with its arguments."""

    type: Name
    """Its name, as in torchvision (transforms)."""
    kwargs: Arguments = {}
    """Its arguments by name."""


class Scheduler(Block):
    """A learning-rate scheduler, stepped after every batch."""

    type: Name
    """A scheduler of torch.optim.lr_scheduler, WarmupLR or PolyLR."""
    kwargs: Arguments = {}
    """Its arguments by name."""
    step_kwargs: Arguments = {}
    """Its arguments that count steps, given in epochs."""


How = Literal["subgradient", "proximal", "coupled", "decoupled"]
HOW: dict[How, str] = {"subgradient": "l1", "proximal": "l1", "coupled": "l2", "decoupled": "l2"}
Strength = Annotated[Number, Field(ge=0, le=1000)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _one_or_more(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


_PATTERN = {"type": "string", "minLength": 1}
_HOW = {"type": "string", "enum": list(HOW)}


class Penalty(Block):
    """l1 times the absolute weights and l2 / 2 times their squares, of convolutions and linear layers, not biases."""

    layers: Annotated[list[Name], Field(min_length=1), BeforeValidator(_listed), _one_or_more(_PATTERN)] = ["*"]
    """Patterns of layers' names (* and ?); a decomposed layer's factors answer to its name and to their own."""
    l1: Strength | None = None
    """Strength of the penalty on absolute weights."""
    l2: Strength | None = None
    """Strength of the penalty on squared weights; coupled, it is what weight_decay is in torch's SGD and Adam."""
    how: Annotated[list[How], Field(min_length=1), BeforeValidator(_listed), _one_or_more(_HOW)] | None = None
    """l1: subgradient (default), or proximal, for exact zeros; l2: coupled (default), or decoupled, as in AdamW."""

    @model_validator(mode="after")
    def _together(self) -> Penalty:
        given = [key for key, value in (("l1", self.l1), ("l2", self.l2)) if value is not None]
        asked = [HOW[word] for word in self.how or ()]
        if not given:
            raise PydanticCustomError("penalty", "needs l1 or l2, or both")
        for word in self.how or ():
            if HOW[word] not in given:
                raise PydanticCustomError("penalty", f"how: {word} is about {HOW[word]}, which is not given")
            if asked.count(HOW[word]) > 1:
                raise PydanticCustomError("penalty", f"how: says twice how {HOW[word]} acts. Say it once")
        return self


class Distillation(Block):
    """Learning from the reference network: (1 - alpha) loss + alpha T^2 KL(its softmax(z/T) || softmax(z/T))."""

    temperature: Annotated[Number, Field(gt=0, le=100)] = 4.0
    """The temperature T by which both networks' logits are divided: the higher, the more the wrong classes say."""
    alpha: Annotated[Number, Field(ge=0, le=1)] = 0.7
    """The share of the reference network's answers in the loss; the labels have the rest."""


def _top_1_and_5() -> list[Component]:
    return [Component(type="TopK", kwargs={"topk": k}) for k in (1, 5)]


class Training(Block):
    """How the network is trained."""

    batch_size: Annotated[Whole, Field(ge=1)]
    """Images a step."""
    test_batch_size: Annotated[Whole, Field(ge=1)] | None = None
    """Images a batch when testing; default: 128, on a GPU as many as fit."""
    num_epochs: Epoch
    """Epochs of the whole schedule; the epochs startEpoch to numEpochs are run."""
    start_epoch: Epoch = 0
    """Retraining only: the epoch of the schedule at which to start (learning-rate rewinding)."""
    optimizer: Name
    """An optimizer of torch.optim."""
    optimizer_kwargs: Arguments = {}
    """Its arguments by name (lr, momentum, weight_decay, ...)."""
    lr_schedulers: list[Scheduler] = []
    """Learning-rate schedulers, stepped in this order."""
    loss: Name = "CrossEntropyLoss"
    """A loss of torch.nn."""
    loss_kwargs: Arguments = {}
    """Its arguments by name."""
    metrics_test: list[Component] = Field(default_factory=_top_1_and_5)
    """Accepted from torchprune's files: every test reports loss, top-1 and top-5, whatever stands here."""
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
    channels_last: bool | None = None
    """Whether images and weights lie in memory pixel by pixel; default: where that is faster, as on every CPU."""
    compiled: bool = Field(default=False, alias="compile")
    """Whether torch.compile makes kernels for every network that is trained: minutes at first, then faster steps."""
    penalties: list[Penalty] = []
    """Penalties on weights, by layer: those that name the same one add up, and weight_decay comes on top of them."""


class Retraining(Training):
    """How compressed networks are retrained."""

    distillation: Distillation | None = None
    """Whether retraining learns from the reference network's answers, too, and how; default: from the labels alone."""
