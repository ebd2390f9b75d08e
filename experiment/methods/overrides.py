"""Settings that name layers by patterns: which of them stay, and which keep a density of their own."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence

from experiment.errors import ConfigError
from experiment.methods.settings import LayerDensity


def own_densities(
    patterns: Mapping[str, LayerDensity], layers: Collection[str], ignored: Collection[str], label: str
) -> dict[str, float]:
    """Layer name -> its own density, for the layers that a pattern names.

    Args:
        layers: those that the method may prune, the ignored ones too; ignored: those that stay whole.
    Raises: ConfigError: a pattern names no layer, one that is ignored, or one that another pattern names too.
    """
    found: dict[str, float] = {}
    faults: list[str] = []
    for pattern, own in patterns.items():
        where, names = f"{label}.layers.{pattern}", fnmatch.filter(layers, pattern)
        if not names:
            faults.append(f"{where}: no layer of its kind is called that. The layers are {', '.join(layers)}.")
        faults += [f"{where}: names '{n}', which `ignore` keeps whole. Remove one." for n in names if n in ignored]
        faults += [f"{where}: names '{n}', which another pattern names too. Remove one." for n in names if n in found]
        found |= dict.fromkeys(names, own.density)
    if faults:
        raise ConfigError(faults)
    return found


def ignored_layers(patterns: Sequence[str], layers: Collection[str], label: str) -> set[str]:
    """The layers that stay whole.

    Raises: ConfigError: a pattern names no layer.
    """
    idle = [pattern for pattern in patterns if not fnmatch.filter(layers, pattern)]
    if idle:
        known = ", ".join(layers)
        raise ConfigError([f"{label}.ignore: no layer is called '{p}'. The layers are {known}." for p in idle])
    return {name for pattern in patterns for name in fnmatch.filter(layers, pattern)}
