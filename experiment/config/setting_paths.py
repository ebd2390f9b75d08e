"""The keys that a parameter file may have, found by walking the schema: for `--set`, customizations and suggestions."""

from __future__ import annotations

import types
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from experiment.config.schema.block import Block
from experiment.config.schema.parameter_file import Parameters
from experiment.config.value_tree import KeyPath, dotted
from experiment.registry import suggestion


def fields_of(block: type[Block]) -> dict[str, FieldInfo]:
    """YAML key -> field of a block."""
    return {info.alias or name: info for name, info in block.model_fields.items()}


def blocks_at(path: KeyPath) -> list[type[Block]]:
    """The blocks that a mapping at this path of YAML keys may be; none where it is a free mapping or no mapping."""
    return [found for found in _types_at(path) if isinstance(found, type) and issubclass(found, Block)]


def description(path: KeyPath) -> str:
    """What the schema says about a key; an empty string where it does not know it."""
    for block in blocks_at(path[:-1]):
        info = fields_of(block).get(str(path[-1]))
        if info is not None and info.description:
            return info.description
    return ""


def unknown(path: KeyPath) -> tuple[KeyPath, str] | None:
    """The first part of a path that the schema does not have, and what is wrong with it; None where all is well."""
    for length in range(1, len(path) + 1):
        here, key = path[: length - 1], path[length - 1]
        options = _types_at(here)
        if not options:
            return path[:length], f"{dotted(here)} holds a single value, which has no '{key}'."
        if not _types_at(path[:length], known=True):
            return path[:length], unknown_key(here, str(key))
    return None


def unknown_key(parent: KeyPath, key: str) -> str:
    """The sentence about a key that its block does not have: with what is meant, perhaps, or what there is."""
    known = _known(parent)
    if not known:
        name = dotted(parent)
        return f"{name} is a list: set it as a whole, or (with --set) one item, as in {name}[0]."
    if near := suggestion(key, known):
        return f"unknown key.{near}"
    homes = [name for name, keys in _homes().items() if key in keys and (name,) != parent]
    if homes:
        return f"unknown key. It belongs in {' or '.join(homes)}."
    if key == "file":
        return "unknown key. A file can only be included from within a parameter file."
    return f"unknown key. Known here: {', '.join(known)}."


def meant(path: KeyPath) -> str:
    """The key of its block that a misspelt one is meant to be; an empty string where none is near."""
    return suggestion(str(path[-1]), _known(path[:-1])).removeprefix(" Did you mean '").removesuffix("'?")


def _known(parent: KeyPath) -> list[str]:
    return list(dict.fromkeys(name for block in blocks_at(parent) for name in fields_of(block)))


@lru_cache(maxsize=1)
def _homes() -> dict[str, list[str]]:
    """Top-level block -> its keys; the free mappings of a training block are found by torch's usual argument names."""
    found = {name: [k for block in blocks_at((name,)) for k in fields_of(block)] for name in fields_of(Parameters)}
    usual = ["lr", "momentum", "weight_decay", "nesterov", "betas"]
    found["retraining"] = [key for key in found["retraining"] if key not in found["training"]]
    return {**found, "training.optimizerKwargs": usual}


def _types_at(path: KeyPath, known: bool = False) -> list[Any]:
    """The types that the value at a path may have.

    `known` counts any value as a type, so that only a path that the schema does not have gives none; without it a
    scalar gives none, because nothing lies below it.
    """
    options: list[Any] = [Parameters]
    for i, key in enumerate(path):
        last = i == len(path) - 1
        options = [t for option in options for t in _step(option, key, known and last)]
    return options


def _step(option: Any, key: str | int, scalars: bool) -> list[Any]:
    if option is Any or get_origin(option) is dict:
        return [Any]
    if get_origin(option) is list:
        return _options(get_args(option)[0], scalars) if isinstance(key, int) else []
    info = fields_of(option).get(str(key)) if isinstance(option, type) and issubclass(option, Block) else None
    return [] if info is None else _options(info.annotation, scalars)


def _options(annotation: Any, scalars: bool) -> list[Any]:
    """A type as the list of its alternatives, without what pydantic adds to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0], scalars)
    if origin in (Union, types.UnionType):
        return [t for part in get_args(annotation) for t in _options(part, scalars)]
    below = (
        annotation is Any or origin in (list, dict) or (isinstance(annotation, type) and issubclass(annotation, Block))
    )
    return [annotation] if below or scalars else []
