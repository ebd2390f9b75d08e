"""The variants of a file (one per customization), and the keep ratios of one variant."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiment.config.keep_ratios import chunks
from experiment.config.schema.parameter_file import Experiments, Parameters
from experiment.config.value_tree import KeyPath, Node, Place, Problem, dotted, plain

NOT_COMPUTED = ("customizations", "slurm", "directories", "network_names", "network_colors", "description")
_SAME = ("numNets", "numRepetitions", "methods", "mode", "hooks")


@dataclass(frozen=True)
class Variant:
    """The file with one value changed. A file without customizations has one variant, itself.

    Attributes:
        name: for instance `retraining.startEpoch=91`; empty for the file itself.
        number: position in the list of customizations.
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


def keep_steps(experiments: Experiments) -> tuple[KeepStep, ...]:
    """The keep ratios in the order in which they are computed: with `retrainIterations`, the last of each chunk.

    Source: torchprune's parameter files, https://github.com/lucaslie/torchprune
    """
    ratios = [ratio for block in experiments.spacing for ratio in block.ratios()]
    if not ratios:
        return (KeepStep(1.0, ()),) if experiments.budget.complete and experiments.mode != "train" else ()
    num = experiments.retrain_iterations if experiments.retrain_iterations >= 1 else len(ratios)
    return tuple(KeepStep(chunk[-1], tuple(chunk[:-1])) for chunk in chunks(ratios, num))


@dataclass(frozen=True)
class Customized:
    """A customization as it is written in the file, before it is applied."""

    number: int
    name: str
    path: tuple[str, ...]
    value: Node
    item: Node

    def blamed(self, problem: Problem) -> Problem:
        """An error of the file with this value set, as an error of the customization."""
        here: KeyPath = ("customizations", self.number)
        shared = min(len(self.path), len(problem.key))
        if problem.key[:shared] != self.path[:shared] or not problem.key:
            text = f"with {self.name}: {dotted(problem.key)}: {problem.text}"
            return replace(problem, place=self.item.place, key=here, text=text)
        if len(problem.key) < len(self.path) or (problem.kind == "unknown" and problem.key == self.path):
            text = f"{dotted(problem.key)}: {problem.text}"
            return replace(problem, place=self.item.place, key=(*here, "key"), text=text)
        return replace(problem, place=self.item.place, key=(*here, "value", *problem.key[len(self.path) :]))


def customized(root: Node, overridden: Sequence[KeyPath], problems: list[Problem]) -> list[Customized]:
    """The customizations that can be applied. Errors in the others are added to `problems`."""
    assert isinstance(root.value, dict)
    items = root.value.get("customizations")
    found: list[Customized] = []
    for i, item in enumerate(items.value if items is not None and isinstance(items.value, list) else []):
        pair = item.value if isinstance(item.value, dict) else {}
        path = plain(pair["key"]) if "key" in pair else None
        if "value" not in pair or not isinstance(path, list) or not path or not all(isinstance(p, str) for p in path):
            continue  # an error of the schema
        name = f"{dotted(tuple(path))}={compact(plain(pair['value']))}"
        same = [other.number for other in found if other.name == name]
        if path[0] in NOT_COMPUTED:
            key: KeyPath = ("customizations", i, "key")
            problems.append(Problem(item.place, key, f"{path[0]} changes nothing that is computed."))
        elif same:
            text = f"sets {name} like customizations[{same[0]}]. Remove one of them."
            problems.append(Problem(item.place, ("customizations", i), text))
        else:
            found.append(Customized(i, name, tuple(path), pair["value"], item))
    problems.extend(_clashes(found, overridden))
    return found


def _clashes(customs: Sequence[Customized], overridden: Sequence[KeyPath]) -> Iterator[Problem]:
    for path in overridden:
        clashing = [c for c in customs if c.path[: len(path)] == path[: len(c.path)]]
        if clashing:
            names = clashing[0].name + (f" and {len(clashing) - 1} more" if len(clashing) > 1 else "")
            text = f"the file's customizations set this as well ({names}). Leave it out, or --set 'customizations=[]'."
            yield Problem(Place(f"--set {dotted(path)}"), (), text)


def changed_for_all(base: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Changes of settings that must be the same in all variants, so that their curves are comparable."""
    before, after = ({k: _key_of_all(k, v) for k in _SAME} for v in (base, variant))
    for key in _SAME:
        if before[key] != after[key]:
            what = "must be train in all customizations or in none" if key == "mode" else "must be the same for all"
            yield ("experiments", key), f"{what}. Use another file for this."


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
