"""`--set KEY=VALUE`: one setting of the file replaced from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from experiment.config.setting_paths import unknown
from experiment.config.value_tree import KeyPath, Node, Place, Problem, dotted, set_at
from experiment.config.yaml_file import parse
from experiment.errors import ConfigError

_PART = re.compile(r"[^.\[\]]+|\[\d+\]")
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\.\d+|\[\d+\])*")


def apply(root: Node, overrides: Sequence[str], problems: list[Problem]) -> tuple[Node, list[KeyPath]]:
    """The tree with every override set, in the order given, and their paths; what is wrong is added to `problems`."""
    paths: list[KeyPath] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        place = Place(f"--set {key}")
        path = parse_path(key)
        if not equals or path is None:
            problems.append(Problem(Place(f"--set {override}"), "expected KEY=VALUE, as in training.numEpochs=2."))
            continue
        if path in paths:
            problems.append(Problem(place, "is given twice."))
            continue
        value = _value(text, place, problems)
        fault = unknown(path)
        if fault is not None:
            problems.append(Problem(place, f"{dotted(fault[0])}: {fault[1]}"))
        elif value is not None:
            try:
                root = set_at(root, path, value)
                paths.append(path)
            except IndexError as error:
                problems.append(Problem(place, f"the list has {error.args[0]} items, counted from 0."))
    return root, paths


def parse_path(text: str) -> KeyPath | None:
    """`a.b[0].c` as a path of keys; None where it is none."""
    text = text.strip()
    if not _PATH.fullmatch(text):
        return None
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in _PART.findall(text))


def _value(text: str, place: Place, problems: list[Problem]) -> Node | None:
    found: list[Problem] = []
    try:
        node = parse(text, str(place), found)
    except ConfigError as error:
        problems.extend(Problem(place, problem.partition(": ")[2]) for problem in error.problems)
        return None
    problems.extend(Problem(place, problem.text) for problem in found)
    if node is None:
        problems.append(Problem(place, 'has no value. Write KEY=null for no value, KEY="" for empty text.'))
        return None
    return _at(node, place)


def _at(node: Node, place: Place) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _at(child, place) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_at(child, place) for child in value]
    return Node(value, place, node.bare, node.broken)
