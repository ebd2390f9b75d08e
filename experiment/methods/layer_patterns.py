"""The layers that the name patterns in a method's settings match, and the values set for them."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from experiment.errors import ConfigError

Value = TypeVar("Value")


def matching(
    patterns: Sequence[str], layers: Collection[str], label: str, what: str = "layer", setting: str = "ignore"
) -> set[str]:
    """The layers that match a pattern.

    Raises: ConfigError: a pattern matches none.
    """
    if faults := _idle(patterns, layers, label, what, setting):
        raise ConfigError(faults)
    return {name for pattern in patterns for name in fnmatch.filter(layers, pattern)}


def not_ignored(ignore: Sequence[str], layers: Collection[str]) -> list[str]:
    """The layers that the setting `ignore` leaves to the method.

    Raises: ConfigError: a pattern matches none, or together they match all.
    """
    ignored = matching(ignore, layers, "settings")
    left = [name for name in layers if name not in ignored]
    if ignored and not left:
        raise ConfigError("settings.ignore: matches every layer, so that nothing is left to compress.")
    return left


def own_values(
    patterns: Mapping[str, Value], layers: Collection[str], ignored: Collection[str], label: str
) -> dict[str, Value]:
    """Layer name -> value, for the layers that match a pattern of the setting `layers`.

    Args:
        layers: the layers that the method applies to, including the ignored ones.
        ignored: the layers that match the setting `ignore`.
    Raises: ConfigError: a pattern matches no layer, an ignored one, or one that another pattern matches too.
    """
    found: dict[str, Value] = {}
    faults = _idle(patterns, layers, label, "layer", "layers")
    for pattern, value in patterns.items():
        where, names = f"{label}.layers.{pattern}", fnmatch.filter(layers, pattern)
        faults += [f"{where}: matches '{n}', which `ignore` matches too. Remove one." for n in names if n in ignored]
        faults += [
            f"{where}: matches '{n}', which another pattern matches too. Remove one." for n in names if n in found
        ]
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
