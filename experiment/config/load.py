"""A parameter file, from its path to checked settings: the only place where YAML becomes an experiment."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiment.config.consistency import ambiguous_words, grid_too_large, inconsistencies, lists_too_long
from experiment.config.error_messages import problems as explained
from experiment.config.experiment_name import experiment_name
from experiment.config.includes import Reader, find_parameter_file
from experiment.config.overrides import apply_overrides
from experiment.config.schema.parameter_file import Parameters
from experiment.config.value_tree import (
    KeyPath,
    Node,
    Problem,
    dotted,
    find,
    merge,
    nearest,
    plain,
    set_at,
    walk,
    without,
)
from experiment.config.variants import Customized, Variant, changed_for_all, customized
from experiment.errors import ConfigError

RESULTS_FOLDER = Path("data/results")

# Keys of torchprune's parameter files without a counterpart here. They are dropped, with a notice.
IGNORED: tuple[KeyPath, ...] = (
    ("blacklist",),
    ("generated",),
    ("coresets", "deltaBest"),
    ("coresets", "sizeOfT"),
    ("experiments", "datasetsToEvaluate"),
    ("directories", "local_data"),
    ("training", "startEpoch"),
    ("training", "metricsTest"),
    ("retraining", "metricsTest"),
)

_BLOCKS = ("network", "training", "retraining", "experiments", "coresets", "directories")


@dataclass(frozen=True)
class ParameterFile:
    """A valid parameter file.

    Attributes:
        path: the file that was found.
        values: what the file says, with includes and overrides applied, without defaults.
        parameters: the checked settings, with defaults.
        variants: one per customization, or the file itself.
        overrides: the `--set` of the command line, as given.
        notices: messages about ignored keys.
        places: key -> where it was written.
    """

    path: Path
    values: dict[str, Any]
    parameters: Parameters
    variants: tuple[Variant, ...]
    overrides: tuple[str, ...]
    notices: tuple[str, ...]
    places: Mapping[KeyPath, str] = field(repr=False)

    def results(self, command_line: Path | None = None) -> Path:
        """The folder of all results: from the command line, else from the file, else the default."""
        return command_line or Path(self.parameters.directories.results or RESULTS_FOLDER)

    def name(self, results: Path | None = None) -> str:
        """The experiment's name, for instance `cifar/prune/resnet20`: its folder below that of all results."""
        return experiment_name(self.path, self.results(results))

    def where(self, *key: str | int, variant: Variant | None = None) -> str:
        """`path/file.yaml:14` of a key (camelCase; list positions as numbers), or of its nearest existing parent.

        Args:
            variant: the variant whose customization is the place of the value that it changes.
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
        overrides: settings to replace, for instance `training.numEpochs=2`; the value is YAML.
        also: finds further errors in the plain values of an invalid file: (key, text) pairs.
    Raises: ConfigError: all errors of the file, one line each.
    """
    found = find_parameter_file(os.fspath(path))
    reader = Reader()
    root = reader.read(found)
    problems = reader.problems
    root, overridden = apply_overrides(root, overrides, problems)
    root, notices = _without_ignored(root)
    tree = effective(root)
    problems.extend(ambiguous_words(root))
    _stop_if(lists_too_long(root), tree, problems, reader.files)
    base, found_here = _validated(tree, reader.incomplete)
    problems.extend(found_here)
    itself = () if base is None else (Variant("", (), None, base),)
    _stop_if(grid_too_large(itself), tree, problems, reader.files)
    custom = customized(root, overridden, problems)
    tried = [_variant(root, tree, each, reader.incomplete, problems) for each in custom]
    variants = tuple(variant for variant in tried if variant is not None)
    _stop_if(grid_too_large(variants), tree, problems, reader.files)
    if problems or base is None:
        problems.extend(_at_nearest(tree, key, text) for key, text in (also(plain(tree)) if also is not None else ()))
        raise ConfigError(_in_order(problems, reader.files))
    places = {key: str(node.place) for key, node in walk(tree)}
    return ParameterFile(found, plain(root), base, variants or itself, tuple(overrides), notices, places)


def effective(root: Node) -> Node:
    """The tree that is checked: empty blocks become empty mappings, and retraining is merged on top of training."""
    assert isinstance(root.value, dict)
    top = {
        k: Node({}, v.place) if k in _BLOCKS and v.value is None and not v.broken else v for k, v in root.value.items()
    }
    training = top.get("training", Node({}, root.place))
    own = top.get("retraining", Node({}, training.place))
    return Node({**top, "training": training, "retraining": merge(training, own)}, root.place)


def _without_ignored(root: Node) -> tuple[Node, tuple[str, ...]]:
    """The tree without ignored keys, and the notices about them."""
    ignored = [key for key in IGNORED if find(root, key) is not None]
    for key in ignored:
        root = without(root, key)
    return root, (f"ignored, not used by this program: {', '.join(map(dotted, ignored))}",) if ignored else ()


def _validated(tree: Node, incomplete: bool) -> tuple[Parameters | None, list[Problem]]:
    """The settings of a tree, or None, and its errors.

    Args:
        incomplete: an include could not be read: missing keys are not reported.
    """
    parameters, found = None, []
    values = plain(tree)
    try:
        parameters = Parameters.model_validate(values)
        values = parameters.model_dump(by_alias=True)
    except ValidationError as error:
        found = list(explained(error.errors(include_url=False), tree))
    found += [_at_nearest(tree, key, text) for key, text in inconsistencies(values)]
    return (None if found else parameters), _each_once(
        problem for problem in found if not (incomplete and problem.kind == "missing")
    )


def _each_once(found: Iterable[Problem]) -> list[Problem]:
    """Without errors of the retraining block that it inherits from the training block."""
    by_key = {problem.key: problem for problem in found}

    def inherited(problem: Problem) -> bool:
        source = by_key.get(("training", *problem.key[1:])) if problem.key[:1] == ("retraining",) else None
        return source is not None and (source.place == problem.place or source.kind == "missing")

    return [problem for problem in by_key.values() if not inherited(problem)]


def _variant(root: Node, tree: Node, custom: Customized, incomplete: bool, problems: list[Problem]) -> Variant | None:
    """The variant of one customization. Errors that the file itself does not have are added to `problems`."""
    changed_root = set_at(without(root, ("customizations",)), custom.path, custom.value)
    changed = effective(changed_root)
    parameters, found = _validated(changed, incomplete)
    found = [*ambiguous_words(changed_root), *found]
    known = {(problem.key, problem.text) for problem in problems}
    new = [problem for problem in found if (problem.key, problem.text) not in known]
    new += [_at_nearest(changed, key, text) for key, text in changed_for_all(plain(tree), plain(changed))]
    problems.extend(custom.blamed(problem) for problem in new)
    if parameters is None:
        return None
    return Variant(custom.name, custom.path, plain(custom.value), parameters, custom.number)


def _at_nearest(tree: Node, key: KeyPath, text: str) -> Problem:
    return Problem(nearest(tree, key).place, key, text)


def _stop_if(found: Iterable[tuple[KeyPath, str]], tree: Node, problems: list[Problem], files: list[str]) -> None:
    """Raises: ConfigError: something was found, which makes further checks too expensive."""
    if fatal := [_at_nearest(tree, key, text) for key, text in found]:
        raise ConfigError(_in_order(problems + fatal, files))


def _in_order(problems: list[Problem], files: list[str]) -> list[str]:
    """Each error once, in the order of files and lines; the command line last."""
    rank = {shown: i for i, shown in enumerate(files)}
    ordered = sorted(problems, key=lambda p: (rank.get(p.place.source, len(rank)), p.place.line or 0))
    return list(dict.fromkeys(str(problem) for problem in ordered))
