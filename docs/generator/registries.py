"""Tables of networks and datasets, and the public names of the package."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import cast

import experiment
from experiment.datasets import DATASETS
from experiment.networks import NETWORKS
from experiment.registry import resolve
from experiment.tasks import TASKS, find_task
from generator.docstrings import parse
from generator.markdown import escaped, table


def networks() -> str:
    """The registered networks, with the settings that their factories take after input shape and output size."""
    rows = []
    for entry in NETWORKS.values():
        factory = cast("Callable[..., object]", resolve(entry.target))
        docstring = parse(factory.__doc__)
        _, _, *settings = inspect.signature(factory).parameters.values()
        taken = ", ".join(f"`{setting.name}` ({setting.default})" for setting in settings)
        source = docstring.sections.get("Source", "")
        architecture = f"{docstring.summary} Source: {source}" if source else docstring.summary
        rows.append([f"`{entry.name}`", escaped(architecture), taken])
    return table(["name", "architecture", "settings"], rows)


def datasets() -> str:
    """The registered datasets."""
    rows = []
    for entry in DATASETS.values():
        shape = " x ".join(map(str, entry.input_shape)) if entry.input_shape else "yours"
        train = f"{entry.num_train:,}" if entry.num_train else "yours"
        rows.append([f"`{entry.name}`", str(entry.num_classes or "yours"), shape, train])
    return table(["name", "classes", "channels x height x width", "training images"], rows)


def tasks() -> str:
    """The registered tasks, with their metrics, the primary one first, and the losses that fit, the default first."""
    rows = []
    for name in TASKS:
        task = find_task(name)
        metrics = ", ".join(f"`{m.name}`{'' if m.better == 'higher' else ' (lower is better)'}" for m in task.metrics)
        of = ", ".join(f"`{entry.name}`" for entry in DATASETS.values() if entry.task == name)
        rows.append([f"`{name}`", metrics, ", ".join(f"`{loss}`" for loss in task.losses), of])
    return table(["task", "metrics", "losses", "datasets"], rows)


def api(*names: str) -> str:
    """Public names, documented from their docstrings."""
    lines = [".. currentmodule:: experiment", ""]
    for name in names:
        found = getattr(experiment, name)
        if not inspect.isclass(found):
            lines.append(f".. autofunction:: {name}\n")
            continue
        own = [field.name for field in fields(found)] if is_dataclass(found) else []  # "Attributes:" documents them
        hidden = f"   :exclude-members: {', '.join(own)}\n" if own else ""
        lines.append(f".. autoclass:: {name}\n   :members:\n{hidden}")
    return "\n".join(["```{eval-rst}", *lines, "```"])
