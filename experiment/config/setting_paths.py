"""The keys that exist at a path of a parameter file, found in the schema: for descriptions and suggestions."""

from functools import lru_cache
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from experiment.config.schema.parameter_file import Parameters
from experiment.config.schema.training import Block
from experiment.config.value_tree import KeyPath
from experiment.registry import near_miss

_OPTIMIZER_ARGUMENTS = ["lr", "momentum", "weight_decay", "nesterov", "betas"]


def description(path: KeyPath) -> str:
    """The description of a key; empty if it does not exist."""
    info = next((keys[key] for keys in _keys_at(path[:-1]) if (key := str(path[-1])) in keys), None)
    return " ".join(((info.description if info is not None else None) or "").split())


def suggested_key(path: KeyPath) -> str:
    """The existing key that a misspelt one is close to; empty if there is none."""
    return near_miss(str(path[-1]), known_keys(path[:-1])) or ""


def known_keys(parent: KeyPath) -> list[str]:
    """The keys of the block at a path."""
    return list(dict.fromkeys(name for keys in _keys_at(parent) for name in keys))


@lru_cache(maxsize=1)
def keys_by_block() -> dict[str, list[str]]:
    """Top-level block -> its keys."""
    found = {name: known_keys((name,)) for name in known_keys(())}
    found["retraining"] = [key for key in found["retraining"] if key not in found["training"]]
    return {**found, "training.optimizerKwargs": _OPTIMIZER_ARGUMENTS}


def _keys_at(path: KeyPath) -> list[dict[str, FieldInfo]]:
    """The keys of every block that the value at a path may be; for a list, of its items."""
    blocks: list[type[Block]] = [Parameters]
    for key in path:
        if isinstance(key, str):
            infos = [_fields(block).get(key) for block in blocks]
            blocks = [found for info in infos if info is not None for found in _blocks_in(info.annotation)]
    return [_fields(block) for block in blocks]


def _fields(block: type[Block]) -> dict[str, FieldInfo]:
    """YAML key -> field."""
    return {info.alias or name: info for name, info in block.model_fields.items()}


def _blocks_in(annotation: Any) -> list[type[Block]]:
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Block):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks_in(part)]
