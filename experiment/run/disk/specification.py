"""The specification in network.pt: how to construct the network, in plain values that are checked and bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, model_validator

from experiment.errors import Damaged, OtherVersion, described
from experiment.layers.plan import MOST_DIMS, Name, Plan, PlanData, Size, first_fault
from experiment.registry import InputForm, InputShape
from experiment.run.grid.keys import FORMAT_VERSION

MAX_INPUTS = 2**24  # elements of one input
MAX_VALUES, MAX_DEPTH = 10_000, 10  # of a network's settings
MOST_INPUTS = 100  # tensors of one sample, on each level


def specification_of(
    plan: Plan, architecture: Mapping[str, Any] | None, about: Mapping[str, str | float | None]
) -> dict[str, Any]:
    """How to rebuild a network, as plain values; arguments as for `save_weights`."""
    return {
        "format": FORMAT_VERSION,
        "architecture": None if architecture is None else dict(architecture),
        "plan": plan.to_data(),
        "about": dict(about),
    }


class InputTree(BaseModel):
    """The form of inputs that consist of several tensors: one of the three is set."""

    model_config = ConfigDict(extra="forbid")

    keywords: Annotated[dict[Name, InputTree], Field(min_length=1, max_length=MOST_INPUTS)] | None = None
    positions: Annotated[list[InputTree], Field(min_length=1, max_length=MOST_INPUTS)] | None = None
    shape: Annotated[list[Size], Field(max_length=MOST_DIMS)] | None = None
    tokens: StrictBool = False

    @property
    def form(self) -> InputForm:
        if self.keywords is not None:
            return {key: part.form for key, part in self.keywords.items()}
        if self.positions is not None:
            return tuple(part.form for part in self.positions)
        return InputShape(self.shape or (), tokens=self.tokens)


def form_data(form: InputForm) -> dict[str, Any]:
    """The form of one input as plain values of an architecture."""
    if isinstance(form, InputShape) and form:
        return {"input_shape": list(form), **({"tokens": True} if form.tokens else {})}
    return {"input_shape": _tree_data(form)}


def _tree_data(form: InputForm) -> dict[str, Any]:
    if isinstance(form, InputShape):
        return {"shape": list(form), **({"tokens": True} if form.tokens else {})}
    if isinstance(form, dict):
        return {"keywords": {key: _tree_data(part) for key, part in form.items()}}
    return {"positions": [_tree_data(part) for part in form]}


def _elements(form: InputForm) -> int:
    if isinstance(form, InputShape):
        return math.prod(form)
    return sum(_elements(part) for part in (form.values() if isinstance(form, dict) else form))


class Architecture(BaseModel):
    """How to construct the original network. The limits bound the memory of an input and its outputs."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    settings: dict[Name, Any]
    output_size: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    input_shape: Annotated[list[Size], Field(min_length=1, max_length=MOST_DIMS)] | InputTree
    tokens: StrictBool = False

    @model_validator(mode="after")
    def _is_bounded(self) -> Architecture:
        if _elements(self.form) > MAX_INPUTS:
            raise ValueError(f"inputs of more than {MAX_INPUTS:,} elements are not read")
        _require_plain(self.settings)
        return self

    @property
    def form(self) -> InputForm:
        """The form of one input."""
        if isinstance(self.input_shape, list):
            return InputShape(self.input_shape, tokens=self.tokens)
        return self.input_shape.form


class Specification(BaseModel):
    """What network.pt says about its network."""

    architecture: Architecture | None
    plan: PlanData
    about: dict[str, Any]


def _require_plain(value: object) -> None:
    """Raises: ValueError: the value is more than a few numbers and texts, in lists and mappings."""
    todo: list[tuple[object, int]] = [(value, 0)]
    for _ in range(MAX_VALUES):
        if not todo:
            return
        item, depth = todo.pop()
        if isinstance(item, dict | list | tuple) and depth < MAX_DEPTH:
            children = [*item, *item.values()] if isinstance(item, dict) else item
            todo.extend((child, depth + 1) for child in children[:MAX_VALUES])
        elif item is not None and type(item) not in (bool, int, float, str):
            raise ValueError("settings must be numbers, texts, lists and mappings")
    raise ValueError(f"settings of more than {MAX_VALUES:,} values are not read")


def checked_specification(specification: object, path: Path) -> Specification:
    """The specification in a file.

    Raises: StoreError: it is damaged, or of another format version.
    """
    version = specification.get("format") if isinstance(specification, dict) else None
    if type(version) is not int:
        raise Damaged(f"{path}: is damaged: its specification has no format version.")
    if version != FORMAT_VERSION:
        raise OtherVersion(
            f"{path}: format version {described(version)}, this program reads {FORMAT_VERSION}. "
            "Load it with the version of the program that wrote it."
        )
    try:
        return Specification.model_validate(specification)
    except ValidationError as error:
        raise Damaged(f"{path}: is damaged: {first_fault(error)}.") from error
