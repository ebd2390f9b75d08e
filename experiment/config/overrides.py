"""`--set KEY=VALUE`: settings replaced from the command line."""

import re
from collections.abc import Sequence

from experiment.config.value_tree import KeyPath, Node, Place, Problem, set_at
from experiment.config.yaml_file import parse
from experiment.errors import ConfigError

_PART = re.compile(r"[^.\[\]]+|\[\d+\]")
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")


def apply_overrides(root: Node, overrides: Sequence[str], problems: list[Problem]) -> tuple[Node, list[KeyPath]]:
    """The tree with all overrides set, in the order given, and their paths. Errors are added to `problems`."""
    paths: list[KeyPath] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        place = Place(f"--set {key}")
        if not equals or not _PATH.fullmatch(key):
            text = "expected KEY=VALUE, for instance experiments.numNets=1."
            problems.append(Problem(Place(f"--set {override}"), (), text))
            continue
        path = tuple(int(part[1:-1]) if part.startswith("[") else part for part in _PART.findall(key))
        if path in paths:
            problems.append(Problem(place, (), "is given twice."))
        elif (value := _value(text, place, problems)) is not None:
            try:
                root = set_at(root, path, value)
                paths.append(path)
            except IndexError as error:
                problems.append(Problem(place, (), f"the list has {error.args[0]} items, counted from 0."))
    return root, paths


def _value(text: str, place: Place, problems: list[Problem]) -> Node | None:
    found: list[Problem] = []
    try:
        node = parse(text, "", found)
    except ConfigError as error:
        problems.extend(Problem(place, (), problem.partition(": ")[2]) for problem in error.problems)
        return None
    problems.extend(Problem(place, (), problem.text) for problem in found)
    if node is None:
        problems.append(Problem(place, (), 'has no value. Write KEY=null for no value, KEY="" for empty text.'))
        return None
    return _moved(node, place)


def _moved(node: Node, place: Place) -> Node:
    """The same tree, written at `place`."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _moved(child, place) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child, place) for child in value]
    return Node(value, place, node.bare, node.broken)
