"""A plan as plain values, as `network.pt` has it: which of them make one, whoever wrote the file."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from experiment.errors import shortened

MOST_LETTERS = 1000  # of a layer's name
MOST_DIMS = 8

Size = Annotated[StrictInt, Field(ge=1, lt=2**40)]
Index = Annotated[StrictInt, Field(ge=0, lt=2**40)]
Name = Annotated[StrictStr, Field(max_length=MOST_LETTERS)]


def _in_order(indices: list[int]) -> list[int]:
    if any(after <= before for before, after in itertools.pairwise(indices)):
        raise ValueError("channels must stand in order, each once")
    return indices


Side = Annotated[list[Index], AfterValidator(_in_order)] | None


class FactorsData(NamedTuple):
    """One layer's factors."""

    rank: Size
    groups: Size
    folding: Annotated[StrictInt, Field(ge=0, le=3)]
    bias: StrictBool


class KeptData(NamedTuple):
    """The channels of one layer that stay."""

    out: Side
    inputs: Side


class PlanData(BaseModel):
    """What `Plan.to_data` writes."""

    model_config = ConfigDict(extra="forbid")

    factors: dict[Name, FactorsData]
    masks: list[Name]
    kept: dict[Name, KeptData]
    factor_masks: dict[Name, Annotated[list[Size], Field(max_length=MOST_DIMS)]] = {}
    biases: list[Name] = []
    skipped: list[Name] = []
    quantized: dict[Name, Literal["float16", "bfloat16", "int8"]] = {}


def first_fault(error: ValidationError) -> str:
    """Where in plain values the first fault is, and what was expected there; not what came, which may be anything."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(shortened(str(part), 60) for part in fault["loc"] if part != "[key]")
    return f"{place}: {fault['msg']}" if place else fault["msg"]
