"""What a file expands to: its variants, and the keep ratios of one variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiment.config.schema.parameter_file import Experiments, Parameters
from experiment.config.setting_paths import unknown
from experiment.config.spacing import chunks
from experiment.config.value_tree import KeyPath, Node, Place, Problem, dotted, plain

NOT_COMPUTED = (
    "customizations",
    "directories",
    "network_names",
    "network_colors",
    "blacklist",
    "description",
    "generated",
)
_SAME = ("numNets", "numRepetitions", "methods", "mode")


@dataclass(frozen=True)
class Variant:
    """One element of a sweep: the file with a single value set; without customizations, the file itself.

    Attributes:
        name: `retraining.startEpoch=91`; empty for the file itself.
        number: its position among the customizations.
    """

    name: str
    key: tuple[str, ...]
    value: Any
    parameters: Parameters
    number: int = 0


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

    number: int
    name: str
    path: tuple[str, ...]
    value: Node
    item: Node

    def blame(self, text: str) -> str:
        """An error of the file that has this value set, said of the customization."""
        here, key = f"customizations[{self.number}]", f"{dotted(self.path)}: "
        return f"{here}.value: {text.removeprefix(key)}" if text.startswith(key) else f"{here} ({self.name}): {text}"


def customized(root: Node, overridden: list[KeyPath], problems: list[Problem]) -> list[Customized]:
    """The customizations whose key can be set; what is wrong with the others is added to `problems`."""
    assert isinstance(root.value, dict)
    items = root.value.get("customizations")
    found: list[Customized] = []
    for i, item in enumerate(items.value if items is not None and isinstance(items.value, list) else []):
        pair = item.value if isinstance(item.value, dict) else {}
        path = plain(pair["key"]) if "key" in pair else None
        if "value" not in pair or not isinstance(path, list) or not path or not all(isinstance(p, str) for p in path):
            continue  # the schema says what is wrong with it
        custom = Customized(
            i, f"{dotted(tuple(path))}={compact(plain(pair['value']))}", tuple(path), pair["value"], item
        )
        fault = _fault(custom, found)
        if fault:
            problems.append(Problem(item.place, f"customizations[{i}]{fault}"))
        else:
            found.append(custom)
    problems.extend(_clashes(found, overridden))
    return found


def _fault(custom: Customized, earlier: list[Customized]) -> str:
    wrong = unknown(custom.path)
    if wrong is not None:
        return f".key: {dotted(wrong[0])}: {wrong[1]}"
    if custom.path[0] in NOT_COMPUTED:
        return f".key: {custom.path[0]} changes nothing that is computed."
    same = [other.number for other in earlier if other.name == custom.name]
    return f": sets {custom.name} like customizations[{same[0]}]. Remove one." if same else ""


def _clashes(customs: list[Customized], overridden: list[KeyPath]) -> Iterator[Problem]:
    for path in overridden:
        clashing = [c for c in customs if c.path[: len(path)] == path[: len(c.path)]]
        if clashing:
            names = clashing[0].name + (f" and {len(clashing) - 1} more" if len(clashing) > 1 else "")
            text = f"the file's customizations set it too ({names}). Leave it to them, or --set 'customizations=[]'."
            yield Problem(Place(f"--set {dotted(path)}"), text)


def changed_for_all(base: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[str]:
    """What a variant changes although it must be the same for all of them, so that their curves can be compared."""
    before, after = ({k: _key_of_all(k, v) for k in _SAME} for v in (base, variant))
    for key in _SAME:
        if before[key] != after[key]:
            what = "whether mode is train" if key == "mode" else f"experiments.{key}"
            yield f"{what} must be the same for all customizations. Write a file of its own for that."


def _key_of_all(key: str, values: Mapping[str, Any]) -> Any:
    experiments = values.get("experiments")
    value = experiments.get(key) if isinstance(experiments, dict) else None
    return value == "train" if key == "mode" else value


def compact(value: Any) -> str:
    """A value as part of a name: `91`, `CIFAR10`, `{lr: 0.05, weight_decay: 1e-06}`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {compact(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(compact(child) for child in value) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
