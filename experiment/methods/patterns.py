"""Which layers the name patterns of a method's settings mean."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from experiment.errors import ConfigError


def matching(
    patterns: Sequence[str], layers: Collection[str], label: str, what: str = "layer", setting: str = "ignore"
) -> set[str]:
    """The layers that a pattern names; one that names none is the user's mistake."""
    named = {pattern: fnmatch.filter(layers, pattern) for pattern in patterns}
    idle = [pattern for pattern, names in named.items() if not names]
    if idle:
        raise ConfigError(
            [
                f"{label}.{setting}: no {what} is called '{pattern}'. The {what}s are {', '.join(layers)}."
                for pattern in idle
            ]
        )
    return {name for names in named.values() for name in names}
