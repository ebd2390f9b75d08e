"""The `training` and `retraining` blocks of a parameter file, and the types that all blocks are made of.

YAML keys are camelCase, attributes snake_case. The docstring under a field is its description in error messages and in
the JSON schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from experiment.escaping import is_number

Conflict = tuple[tuple[str | int, ...], str]  # the path below the value that is validated, and a full sentence
LOSS_OF_TASK = "LossFromInput"  # torchprune's name for it
CONFLICT = "conflict"  # the type of errors whose text is a full sentence: values that do not fit together


def _no_bool(kind: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, bool):  # Python would convert it to 0 or 1
            raise PydanticCustomError(kind, "not a number")
        return value

    return check


def _no_number(value: object) -> object:
    if type(value) in (int, float):  # which Python would take for true or false: 1 == True
        raise PydanticKnownError("literal_error", {"expected": "False, True or 'reduce-overhead'"})
    return value


Whole = Annotated[int, BeforeValidator(_no_bool("int_type"))]
Number = Annotated[float, BeforeValidator(_no_bool("float_type"))]
Epoch = Annotated[Whole, Field(ge=0)]
Keep = Annotated[Number, Field(gt=0, le=1)]
Name = Annotated[str, StringConstraints(min_length=1)]


class Block(BaseModel):
    """A mapping with a fixed set of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True)


def refuse(value: object, conflicts: Iterable[Conflict]) -> None:
    """Raise all conflicts as one error.

    Raises: ValidationError: there is at least one conflict.
    """
    details = [
        InitErrorDetails(type=PydanticCustomError(CONFLICT, "{text}", {"text": text}), loc=path, input=value)
        for path, text in conflicts
    ]
    if details:
        raise ValidationError.from_exception_data(CONFLICT, details)


def _no_number_as_text(value: object) -> object:
    """Refuses quoted numbers: no optimizer, scheduler, loss or transform takes a number as text."""
    quoted = ((path, text) for path, text in _texts(value) if is_number(text))
    refuse(value, ((path, f"must be a number without quotes. Got {text!r}.") for path, text in quoted))
    return value


def _texts(value: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All texts in a value, each with its path."""
    if isinstance(value, str):
        yield (), value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from (((key, *path), text) for path, text in _texts(part))


Arguments = dict[str, Annotated[Any, BeforeValidator(_no_number_as_text)]]


class Component(Block):
    """A transform with its arguments."""

    type: Name
    """Name of a transform in torchvision.transforms.v2."""
    kwargs: Arguments = {}
    """Keyword arguments of the transform."""


class Scheduler(Block):
    """A learning-rate scheduler, stepped after every batch."""

    type: Name
    """A scheduler of torch.optim.lr_scheduler, WarmupLR or PolyLR."""
    kwargs: Arguments = {}
    """Keyword arguments of the scheduler."""
    step_kwargs: Arguments = {}
    """Keyword arguments that count steps, given in epochs (milestones, step_size, T_max, ...)."""


How = Literal["subgradient", "proximal", "coupled", "decoupled"]
HOW: dict[How, str] = {"subgradient": "l1", "proximal": "l1", "coupled": "l2", "decoupled": "l2"}
Strength = Annotated[Number, Field(ge=0, le=1000)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _one_or_more(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


_LISTS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "array", "minItems": 2}}
_VALUES_TO_TRY = WithJsonSchema({"anyOf": [_LISTS, {"type": "null"}]})
_PATTERN = {"type": "string", "minLength": 1}
_HOW = {"type": "string", "enum": list(HOW)}


class Penalty(Block):
    """Adds l1 * sum|w| + l2 / 2 * sum(w^2) to the loss, over the weights of convolutions and linear layers."""

    layers: Annotated[list[Name], Field(min_length=1), BeforeValidator(_listed), _one_or_more(_PATTERN)] = ["*"]
    """Patterns of layer names (* and ?). A decomposed layer matches by its own name and by those of its factors."""
    l1: Strength | None = None
    """Strength of the L1 penalty."""
    l2: Strength | None = None
    """Strength of the L2 penalty. If coupled, it equals weight_decay of torch's SGD and Adam."""
    how: Annotated[list[How], Field(min_length=1), BeforeValidator(_listed), _one_or_more(_HOW)] | None = None
    """How the penalty is applied. L1: subgradient (default), or proximal for exact zeros. L2: coupled (default), or
    decoupled as in AdamW."""

    @model_validator(mode="after")
    def _consistent(self) -> Penalty:
        refuse(self, self._conflicts())
        return self

    def _conflicts(self) -> Iterator[Conflict]:
        given = [key for key, value in (("l1", self.l1), ("l2", self.l2)) if value is not None]
        if not given:
            yield (), "needs l1, l2 or both."
        how = self.how or []
        for word in how:
            if given and HOW[word] not in given:
                yield ("how",), f"{word} applies to {HOW[word]}, which is not set."
        for norm in given:
            if len(words := [word for word in how if HOW[word] == norm]) > 1:
                yield ("how",), f"{' and '.join(words)} both apply to {norm}. Choose one."


class Distillation(Block):
    """Knowledge distillation: (1 - alpha) loss(labels) + alpha T^2 KL(softmax(z_reference / T) || softmax(z / T))."""

    temperature: Annotated[Number, Field(gt=0, le=100)] = 4.0
    """Temperature T by which the logits of both networks are divided. Higher values give wrong classes more weight."""
    alpha: Annotated[Number, Field(ge=0, le=1)] = 0.7
    """Weight of the distillation term. The loss on the labels has weight 1 - alpha."""


class Training(Block):
    """How the reference networks are trained."""

    batch_size: Annotated[Whole, Field(ge=1)]
    """Images per optimizer step."""
    test_batch_size: Annotated[Whole, Field(ge=1)] | None = None
    """Images per batch in validation and test. Default: 128 on a CPU, as many as fit on a GPU."""
    num_epochs: Epoch
    """Length of the schedule in epochs. Epochs startEpoch to numEpochs are run."""
    start_epoch: Epoch = 0
    """Retraining only: epoch of the schedule at which retraining starts (learning-rate rewinding)."""
    optimizer: Name
    """An optimizer of torch.optim."""
    optimizer_kwargs: Arguments = {}
    """Keyword arguments of the optimizer (lr, momentum, weight_decay, ...)."""
    lr_schedulers: list[Scheduler] = []
    """Learning-rate schedulers, stepped in this order."""
    loss: Name | None = None
    """A loss of torch.nn that fits the task. Default: that of the task, such as CrossEntropyLoss."""
    loss_kwargs: Arguments = {}
    """Keyword arguments of the loss."""
    transforms_train: list[Component] = []
    """Transforms of training images, applied before transformsFinal."""
    transforms_test: list[Component] = []
    """Transforms of validation and test images, applied before transformsFinal."""
    transforms_final: list[Component] = []
    """Transforms applied last to all images (ToTensor, Normalize)."""
    enable_amp: bool = Field(default=True, alias="enableAMP")
    """Allow `precision: auto` to choose a reduced precision. If false, auto means fp32."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of forward and backward passes. auto: fp32 on a CPU, the fastest format that a GPU supports."""
    early_stop_epoch: Epoch | None = None
    """First epoch from which the state with the best validation metric is kept. Default: keep the last state."""
    channels_last: bool | None = None
    """Use the channels-last memory format. Default: where it is faster, which includes every CPU."""
    compiled: Annotated[Literal[False, True, "reduce-overhead"], BeforeValidator(_no_number)] = Field(
        default=False, alias="compile"
    )
    """Compile networks with torch.compile for training: half a minute to minutes per structure, then faster steps.
    `reduce-overhead` also records CUDA graphs, for small networks on a GPU; on a CPU it records none."""
    penalties: list[Penalty] = []
    """Penalties on weights. Penalties on the same layer add up, and weight_decay adds to them."""

    @field_validator("loss")
    @classmethod
    def _of_task(cls, loss: str | None) -> str | None:
        return None if loss == LOSS_OF_TASK else loss

    @field_validator("start_epoch")
    @classmethod
    def _within_schedule(cls, start: int, info: ValidationInfo) -> int:
        last = info.data.get("num_epochs")
        if last is not None and start > last:
            what = f"is {start}, after the last epoch: numEpochs is {last}."
            refuse(start, [((), f"{what} Lower it, for example to 0, or raise numEpochs.")])
        return start


def _by_dotted_key(value: object) -> object:
    """Lists of values by dotted key; nested mappings, as those of `--set`, mean the same."""
    return dict(_lists_in(value)) if isinstance(value, dict) else value


def _lists_in(value: dict[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    for key, below in value.items():
        if isinstance(below, dict):
            yield from _lists_in(below, (*path, str(key)))
        else:
            yield ".".join((*path, str(key))), below


class Retraining(Training):
    """How compressed networks are retrained."""

    distillation: Distillation | None = None
    """Knowledge distillation from the reference network. Default: train on the labels alone."""
    tune: Annotated[dict[str, Any] | None, BeforeValidator(_by_dotted_key), _VALUES_TO_TRY] = None
    """Keys of this block to tune, each with the values to try: {optimizerKwargs.lr: [0.1, 0.03, 0.01]}. Every cell is
    retrained once with each combination, and the network that is best on the validation part is kept. Default: none."""
