"""From a method's name to its registry entry, without torch."""

from __future__ import annotations

from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.registry import MethodEntry, is_import_path, resolve, suggestion


def find_method(name: str) -> MethodEntry | str:
    """The entry behind a label, one of torchprune's class names or an import path; else why there is none."""
    if is_import_path(name):
        entry = resolve(name)
        return entry if isinstance(entry, MethodEntry) else f"'{name}' is not an experiment.registry.MethodEntry."
    label = TORCHPRUNE_NAMES.get(name, name)
    if label in METHODS:
        return METHODS[label]
    return f"unknown method '{name}'.{suggestion(name, [*METHODS, *TORCHPRUNE_NAMES])}"
