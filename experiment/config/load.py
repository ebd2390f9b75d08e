"""A parameter file, from its path to checked settings: the one place where YAML becomes an experiment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiment.config import overrides as command_line
from experiment.config.consistency import ambiguous_words, faults
from experiment.config.count_cells import length_faults, size_fault
from experiment.config.error_messages import problems as explained
from experiment.config.experiment_name import experiment_name
from experiment.config.includes import Reader, find_parameter_file
from experiment.config.schema.parameter_file import Parameters
from experiment.config.value_tree import KeyPath, Node, Problem, dotted, exists, merge, nearest, plain, set_at, walk
from experiment.config.variants import Customized, Variant, changed_for_all, customized
from experiment.errors import ConfigError

RESULTS_FOLDER = Path("data/results")

WITHOUT_EFFECT: tuple[KeyPath, ...] = (
    ("blacklist",),
    ("generated",),
    ("coresets", "deltaBest"),
    ("coresets", "sizeOfT"),
    ("experiments", "datasetsToEvaluate"),
    ("directories", "local_data"),
    ("training", "startEpoch"),
    ("retraining", "metricsTest"),
)


@dataclass(frozen=True)
class ParameterFile:
    """A parameter file that was read and found good.

    Attributes:
        path: the file that was found.
        values: what the file says, includes and overrides in place, nothing filled in.
        parameters: the same as checked settings, defaults filled in.
        variants: one for each customization, or the file itself.
        overrides: the `--set` of the command line, as given.
        notices: what the file says that has no effect here.
    """

    path: Path
    values: dict[str, Any]
    parameters: Parameters
    variants: tuple[Variant, ...]
    overrides: tuple[str, ...]
    notices: tuple[str, ...]
    places: Mapping[KeyPath, str] = field(repr=False)

    def results(self, command_line: Path | None = None) -> Path:
        """The folder of all results: the command line before the file before the default."""
        return command_line or Path(self.parameters.directories.results or RESULTS_FOLDER)

    def name(self, results: Path | None = None) -> str:
        """The experiment's name, such as `cifar/prune/resnet20`: its folder below that of all results."""
        return experiment_name(self.path, self.results(results))

    def where(self, *key: str | int, variant: Variant | None = None) -> str:
        """`path/file.yaml:14` of a key (camelCase; list positions as numbers), or of its nearest parent there is.

        Args:
            variant: whose customization is the place of what it sets; retraining inherits what training says.
        """
        if variant is not None and variant.key and key[: len(variant.key)] == variant.key:
            key = ("customizations", variant.number, "value", *key[len(variant.key) :])
        while key and key not in self.places:
            key = key[:-1]
        return self.places[key]


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    also: Callable[[Mapping[str, Any]], Iterable[tuple[KeyPath, str]]] | None = None,
) -> ParameterFile:
    """Read a parameter file with its includes, and check everything that can be checked without running it.

    Args:
        path: looked up from the working directory, then among the files that come with the package.
        overrides: `training.numEpochs=2` and the like, the value as YAML.
        also: what else to tell of a file that is wrong, from its plain values: (key, text) pairs.
    Raises: ConfigError: everything that is wrong with it, one line each.
    """
    found = find_parameter_file(os.fspath(path))
    reader = Reader()
    root = reader.read(found)
    problems = reader.problems
    root, overridden = command_line.apply(root, overrides, problems)
    problems.extend(ambiguous_words(root))
    if too_long := [_problem(root, *fault) for fault in length_faults(root)]:
        raise ConfigError(_in_order(problems + too_long, reader.files))
    base = _validated(root, problems, reader.incomplete)
    if base is not None and (fault := size_fault((Variant("", (), None, base),))):
        raise ConfigError(_in_order([*problems, _problem(root, *fault)], reader.files))
    variants = tuple(
        variant
        for custom in customized(root, overridden, problems)
        if (variant := _variant(root, custom, problems, reader.incomplete)) is not None
    )
    if variants and (fault := size_fault(variants)):
        raise ConfigError(_in_order([*problems, _problem(root, *fault)], reader.files))
    if problems or base is None:
        tree = effective(root) if isinstance(root.value, dict) else root
        found_too = also(plain(tree)) if also is not None and tree is not root else ()
        problems.extend(Problem(nearest(tree, key).place, f"{dotted(key)}: {text}") for key, text in found_too)
        raise ConfigError(_in_order(problems, reader.files))
    return ParameterFile(
        path=found,
        values=plain(root),
        parameters=base,
        variants=variants or (Variant("", (), None, base),),
        overrides=tuple(overrides),
        notices=_notices(root),
        places={key: str(node.place) for key, node in walk(effective(root))},
    )


def effective(root: Node) -> Node:
    """The tree that is checked: empty blocks are empty mappings, and retraining is training with its own keys on top.

    torchprune starts every training at epoch 0 and tests retrained networks with the metrics of the training block.
    """
    assert isinstance(root.value, dict)
    blocks = ("network", "training", "retraining", "experiments", "coresets", "directories")
    top = {
        k: Node({}, v.place) if k in blocks and v.value is None and not v.broken else v for k, v in root.value.items()
    }
    training = _without(top.get("training", Node({}, root.place)), "startEpoch")
    own = _without(top.get("retraining", Node({}, training.place)), "metricsTest")
    top |= {"training": training, "retraining": merge(training, own)}
    return Node(top, root.place)


def _without(node: Node, key: str) -> Node:
    if not isinstance(node.value, dict):
        return node
    return Node({k: v for k, v in node.value.items() if k != key}, node.place, broken=node.broken)


def _validated(root: Node, problems: list[Problem], incomplete: bool) -> Parameters | None:
    """The settings of a tree, or None with what is wrong added to `problems`."""
    tree = effective(root)
    values = plain(tree)
    parameters = None
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        details = [e for e in error.errors(include_url=False) if not (incomplete and e["type"] == "missing")]
        problems.extend(_each_once(explained(details, tree)))
    for key, text in faults(values):
        parameters = None
        if not (incomplete and "is required" in text):
            problems.append(Problem(nearest(tree, key).place, f"{dotted(key)}: {text}"))
    return parameters


def _problem(root: Node, key: KeyPath, text: str) -> Problem:
    return Problem(nearest(root, key).place, f"{dotted(key)}: {text}")


def _each_once(found: Iterable[tuple[KeyPath, Problem]]) -> list[Problem]:
    """Without what is wrong in the retraining block only because the training block is wrong."""
    told = dict(found)

    def inherited(path: KeyPath, problem: Problem) -> bool:
        source = told.get(("training", *path[1:])) if path[:1] == ("retraining",) else None
        return source is not None and (source.place == problem.place or "is required" in problem.text)

    return [problem for path, problem in told.items() if not inherited(path, problem)]


def _variant(root: Node, custom: Customized, problems: list[Problem], incomplete: bool) -> Variant | None:
    """One customization tried; what is wrong with it, and not with the file itself, is added to `problems`."""
    # without the list itself, of which each variant would hold a copy
    tree, bare = (_without(each, "customizations") for each in (set_at(root, custom.path, custom.value), root))
    found = list(ambiguous_words(tree))
    parameters = _validated(tree, found, incomplete)
    known = {problem.text for problem in problems}
    texts = [problem.text for problem in found if problem.text not in known]
    texts.extend(changed_for_all(plain(effective(bare)), plain(effective(tree))))
    problems.extend(Problem(custom.item.place, custom.blame(text)) for text in texts)
    return (
        None
        if parameters is None
        else Variant(custom.name, custom.path, plain(custom.value), parameters, custom.number)
    )


def _in_order(problems: list[Problem], files: list[str]) -> list[str]:
    """Each problem once, in the order of the files and their lines; the command line last."""
    rank = {shown: i for i, shown in enumerate(files)}
    ordered = sorted(problems, key=lambda p: (rank.get(p.place.source, len(rank)), p.place.line or 0))
    return list(dict.fromkeys(str(problem) for problem in ordered))


def _notices(root: Node) -> tuple[str, ...]:
    found = [*(key for key in WITHOUT_EFFECT if exists(root, key)), *_unused(plain(root))]
    names = [dotted(key) for key in found]
    return (f"accepted, has no effect here: {', '.join(names)}",) if names else ()


def _unused(values: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Keys without effect whose values say so: other metrics than those of every test, a limit that is computed."""
    metrics = (values.get("training") or {}).get("metricsTest") or []
    if any(metric["type"] != "TopK" or metric.get("kwargs", {}).get("topk", 1) not in (1, 5) for metric in metrics):
        yield "training", "metricsTest"
    for i, block in enumerate((values.get("experiments") or {}).get("spacing") or []):
        if block["type"] == "harmonic" and "maxVal" in block:
            yield "experiments", "spacing", i, "maxVal"
