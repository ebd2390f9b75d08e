"""Which layers the name patterns of a method's settings mean, and what of their own those layers are given."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from experiment.errors import ConfigError

Value = TypeVar("Value")


def matching(
    patterns: Sequence[str], layers: Collection[str], label: str, what: str = "layer", setting: str = "ignore"
) -> set[str]:
    """The layers that a pattern names.

    Raises: ConfigError: a pattern names none.
    """
    if faults := _idle(patterns, layers, label, what, setting):
        raise ConfigError(faults)
    return {name for pattern in patterns for name in fnmatch.filter(layers, pattern)}


def own_values(
    patterns: Mapping[str, Value], layers: Collection[str], ignored: Collection[str], label: str
) -> dict[str, Value]:
    """Layer name -> the value of its own, for the layers that a pattern of the setting `layers` names.

    Args:
        layers: those that the method is about, the ignored ones too; ignored: those that it leaves alone.
    Raises: ConfigError: a pattern names no layer, one that is ignored, or one that another pattern names too, for the
        order of patterns says nothing.
    """
    found: dict[str, Value] = {}
    faults = _idle(patterns, layers, label, "layer", "layers")
    for pattern, value in patterns.items():
        where, names = f"{label}.layers.{pattern}", fnmatch.filter(layers, pattern)
        faults += [f"{where}: names '{n}', which `ignore` leaves alone. Remove one." for n in names if n in ignored]
        faults += [f"{where}: names '{n}', which another pattern names too. Remove one." for n in names if n in found]
        found |= dict.fromkeys(names, value)
    if faults:
        raise ConfigError(faults)
    return found


def _idle(patterns: Iterable[str], layers: Collection[str], label: str, what: str, setting: str) -> list[str]:
    return [
        f"{label}.{setting}: no {what} is called '{pattern}'. The {what}s are {', '.join(layers)}."
        for pattern in patterns
        if not fnmatch.filter(layers, pattern)
    ]
