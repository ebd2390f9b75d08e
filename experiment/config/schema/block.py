"""What every block of a parameter file is made of: a mapping with known keys, and checked numbers and names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError


def _no_bool(kind: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, bool):  # which Python takes for 0 or 1
            raise PydanticCustomError(kind, "not a number")
        return value

    return check


Whole = Annotated[int, BeforeValidator(_no_bool("int_type"))]
Number = Annotated[float, BeforeValidator(_no_bool("float_type"))]
Epoch = Annotated[Whole, Field(ge=0)]
Keep = Annotated[Number, Field(gt=0, le=1)]
Name = Annotated[str, StringConstraints(min_length=1)]


class Block(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True)
