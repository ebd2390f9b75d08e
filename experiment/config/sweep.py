"""What a file expands to: its variants, and the keep ratios of one variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiment.config.keys import unknown
from experiment.config.schema import Experiments, Parameters
from experiment.config.spacing import chunks
from experiment.config.tree import KeyPath, Node, Place, Problem, dotted, plain

NOT_COMPUTED = (
    "customizations",
    "directories",
    "network_names",
    "network_colors",
    "blacklist",
    "description",
    "generated",
)


@dataclass(frozen=True)
class Variant:
    """One element of a sweep: the file with a single value set; without customizations, the file itself.

    Attributes:
        name: `retraining.startEpoch=91`; empty for the file itself.
    """

    name: str
    key: tuple[str, ...]
    value: Any
    parameters: Parameters


@dataclass(frozen=True)
class KeepStep:
    """A keep ratio that is retrained and tested, and those before it that are only compressed to, in order."""

    keep: float
    between: tuple[float, ...]


def keep_ratios(experiments: Experiments) -> list[float]:
    """All keep ratios of a file, the spacing blocks one after the other."""
    return [ratio for block in experiments.spacing for ratio in block.ratios()]


def keep_steps(experiments: Experiments) -> tuple[KeepStep, ...]:
    """The keep ratios in the order in which they are computed; with `retrainIterations`, the last of each chunk.

    Source: torchprune's parameter files, https://github.com/lucaslie/torchprune
    """
    ratios = keep_ratios(experiments)
    if not ratios:
        return ()
    num = experiments.retrain_iterations if experiments.retrain_iterations >= 1 else len(ratios)
    return tuple(KeepStep(chunk[-1], tuple(chunk[:-1])) for chunk in chunks(ratios, num))


@dataclass(frozen=True)
class Customized:
    """A customization as it stands in the file, before it is tried."""

    name: str
    path: tuple[str, ...]
    value: Node
    item: Node


def customized(root: Node, overridden: list[KeyPath], problems: list[Problem]) -> Iterator[Customized]:
    """The customizations whose key can be set; what is wrong with the others is added to `problems`."""
    assert isinstance(root.value, dict)
    items = root.value.get("customizations")
    names: set[str] = set()
    for i, item in enumerate(items.value if items is not None and isinstance(items.value, list) else []):
        key = item.value.get("key") if isinstance(item.value, dict) else None
        value = item.value.get("value") if isinstance(item.value, dict) else None
        path = tuple(plain(key)) if key is not None and isinstance(key.value, list) else ()
        if key is None or value is None or not path or not all(isinstance(part, str) for part in path):
            continue  # the schema says what is wrong with it
        here, name = f"customizations[{i}]", f"{dotted(path)}={compact(plain(value))}"
        fault = unknown(path)
        if fault is not None:
            problems.append(Problem(key.place, f"{here}.key: {dotted(fault[0])}: {fault[1]}"))
        elif path[0] in NOT_COMPUTED:
            problems.append(Problem(key.place, f"{here}.key: {path[0]} changes nothing that is computed."))
        elif name in names:
            problems.append(Problem(item.place, f"{here}: {name} is there twice. Remove one."))
        else:
            names.add(name)
            problems.extend(_clashes(name, path, overridden))
            yield Customized(name, path, value, item)


def _clashes(name: str, path: tuple[str, ...], overridden: list[KeyPath]) -> Iterator[Problem]:
    for other in overridden:
        if other[: len(path)] == path[: len(other)]:
            text = f"the file's customizations set it too ({name}). Leave it to them, or --set customizations=[]."
            yield Problem(Place(f"--set {dotted(other)}"), text)


def changed_for_all(base: Parameters, variant: Parameters) -> Iterator[str]:
    """What a variant changes although it must be the same for all of them, so that their curves can be compared."""
    a, b = base.experiments, variant.experiments
    for key, same in (
        ("numNets", a.num_nets == b.num_nets),
        ("numRepetitions", a.num_repetitions == b.num_repetitions),
        ("methods", a.methods == b.methods),
        ("mode (train or not)", (a.mode == "train") == (b.mode == "train")),
    ):
        if not same:
            yield f"experiments.{key} must be the same for all customizations. Write a file of its own for that."


def compact(value: Any) -> str:
    """A value as part of a name: `91`, `CIFAR10`, `{lr: 0.05, weight_decay: 1e-06}`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {compact(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(compact(child) for child in value) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
