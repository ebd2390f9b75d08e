"""YAML text into a tree of values with their lines: plain data only, read as people mean it.

Scalars follow YAML 1.2 (`1e-4` and `.5` are numbers; `on`, `no` and `1:30` are text; `010` is ten); keys
are always text.
Nothing is ever constructed: a tag such as `!!python/object` is an error, not a call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from experiment.config.value_tree import MAX_NODES, KeyPath, Node, Place, Problem, Scalar, plain
from experiment.errors import ConfigError
from experiment.escaping import unfit

MAX_DEPTH = 100
MAX_BYTES = 4_000_000
MOST_SHOWN = 40
NO_TEXT = "Write text that can be shown and stand in a file's name, without control characters."

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9](_?[0-9])*")
_BASED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?([0-9](_?[0-9])*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE = "tag:yaml.org,2002:"
_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "null": type(None)}
_HINTS = {
    "cannot start any token": "A tab? Indent with spaces only, and quote text that starts with @, ` or %.",
    "mapping values are not allowed": "Is a ':' inside unquoted text, or is this line indented too far?",
    "could not find expected ':'": "Is the ':' after a key missing, or a quote not closed?",
    "expected <block end>": "Check the indentation of this line and of the lines above it.",
    "found undefined alias": "Define it with &name above this line.",
    "unexpected end of stream": "A quote or a bracket is not closed.",
    "expected ',' or": "A bracket is not closed, or a comma is missing.",
}


def read_yaml(path: Path, shown: str, problems: list[Problem]) -> Node:
    """Read a file; its top level must be a mapping.

    Args:
        shown: how the file is called in places.
        problems: what is wrong but does not hinder reading on is added here (duplicate keys, tags, infinite numbers).
    Raises: ConfigError: the file cannot be read any further.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{shown}: is larger than {MAX_BYTES:,} bytes, which no parameter file is.")
    if b"\0" in data:
        raise ConfigError(f"{shown}: is a binary file, not YAML text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{shown}:{line}: is not UTF-8 text (byte 0x{data[error.start]:02x}). Save it as UTF-8."
        ) from error
    root = parse(text, shown, problems)
    if root is None:
        raise ConfigError(f"{shown}:1: is empty. Expected a mapping, for instance 'network: ...'.")
    if not isinstance(root.value, dict):
        got = "a list" if isinstance(root.value, list) else repr(root.value)
        got = got if len(got) <= MOST_SHOWN else "text"  # of a file that is something else altogether, and maybe secret
        raise ConfigError(f"{shown}:{root.place.line}: must hold a mapping ('key: value' lines). Got {got}.")
    return root


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that this program wrote, as plain values, however hostile the file may be.

    Raises: ConfigError: it is none, or what is wrong with it.
    """
    problems: list[Problem] = []
    root = read_yaml(path, str(path), problems)
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    found: dict[str, Any] = plain(root)
    return found


def parse(text: str, shown: str, problems: list[Problem]) -> Node | None:
    """Parse one YAML document; None where there is nothing in it.

    Raises: ConfigError: not YAML, more than one document, too deep, or too large once its aliases are written out.
    """
    try:
        return _Builder(yaml.parse(text, Loader=yaml.SafeLoader), shown, problems).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{shown}:{line}: holds a control character (#x{error.character:04x}).") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "unreadable"
        hint = next((f" {hint}" for part, hint in _HINTS.items() if part in what), "")
        raise ConfigError(f"{shown}:{mark.line + 1 if mark else 1}: not valid YAML: {what}.{hint}") from error


class _Builder:
    """Builds the tree from the parser's events, so that every value keeps its line and nothing is constructed."""

    def __init__(self, events: Iterator[yaml.Event], shown: str, problems: list[Problem]) -> None:
        self.events, self.shown, self.problems = events, shown, problems
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.count = 0  # of nodes, those behind aliases included

    def document(self) -> Node | None:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        root = self.node(next(self.events), ())
        next(self.events)  # the document's end
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise ConfigError(f"{self.at(after)}: a second document ('---'). Put each experiment into its own file.")
        return None if root.value is None and root.bare == "" else root

    def at(self, event: yaml.Event) -> Place:
        assert event.start_mark is not None
        return Place(self.shown, event.start_mark.line + 1)

    def problem(self, event: yaml.Event, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(self.at(event), path, text))

    def node(self, event: yaml.Event, path: KeyPath) -> Node:
        self.grow(event, 1)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{self.at(event)}: nested more than {MAX_DEPTH} deep.")
        before = self.count
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.sequence(event, path)
        else:
            assert isinstance(event, yaml.MappingStartEvent)
            node = self.mapping(event, path)
        if event.anchor is not None:
            self.anchors[event.anchor] = (node, self.count - before)
        return node

    def grow(self, event: yaml.Event, size: int) -> None:
        self.count += size
        if self.count > MAX_NODES:
            raise ConfigError(f"{self.at(event)}: more than {MAX_NODES:,} values once aliases are written out.")

    def alias(self, event: yaml.AliasEvent) -> Node:
        if event.anchor not in self.anchors:
            raise ConfigError(f"{self.at(event)}: the alias *{event.anchor} has no complete &{event.anchor} before it.")
        node, size = self.anchors[event.anchor]
        self.grow(event, size)
        return Node(node.value, self.at(event), node.bare, node.broken)

    def sequence(self, event: yaml.SequenceStartEvent, path: KeyPath) -> Node:
        broken = self.has_tag(event, "seq", path)
        items: list[Node] = []
        while not isinstance(following := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(following, (*path, len(items))))
        return Node(items, self.at(event), broken=broken)

    def mapping(self, event: yaml.MappingStartEvent, path: KeyPath) -> Node:
        broken = self.has_tag(event, "map", path)
        children: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        merged_before = False
        while not isinstance(key_event := next(self.events), yaml.MappingEndEvent):
            key, merges = self.key(key_event, path)
            child = self.node(next(self.events), (*path, key))
            child = Node(child.value, self.at(key_event), child.bare, child.broken)  # a value stands where its key is
            if merges:
                if merged_before:
                    self.problem(key_event, (*path, key), "is given twice. Write one, with a list: `<<: [*a, *b]`.")
                merged_before = True
                merged = {**self.merged_in(key_event, child, path), **merged}
            elif key in children:
                first = children[key].place.line
                self.problem(key_event, (*path, key), f"is given twice (first in line {first}). Keep one.")
            else:
                children[key] = child
        return Node({**merged, **children}, self.at(event), broken=broken)

    def key(self, event: yaml.Event, path: KeyPath) -> tuple[str, bool]:
        """A key as text, and whether it is YAML's `<<`."""
        if isinstance(event, yaml.ScalarEvent):
            if character := unfit(event.value):
                self.problem(event, path, f"a key holds {character}. {NO_TEXT}")
            return event.value, event.value == "<<" and event.implicit[0]
        node = self.node(event, (*path, "?"))
        if not isinstance(node.value, str):
            self.problem(event, path, "a key must be plain text.")
        return str(node.value), False

    def merged_in(self, event: yaml.Event, child: Node, path: KeyPath) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for part in child.value if isinstance(child.value, list) else [child]:
            if isinstance(part.value, dict):
                found = {**part.value, **found}
            else:
                self.problem(event, (*path, "<<"), "takes an alias of a mapping, or a list of such.")
        return found

    def scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Node:
        bare = event.value if event.style is None else None
        value: Scalar = event.value
        kind = (event.tag or "!").removeprefix(_CORE)
        if kind in _TYPES:
            value = resolve(event.value)
            value = float(value) if kind == "float" and type(value) is int else value
            if type(value) is not _TYPES[kind]:
                return self.refused(event, path, f"is tagged !!{kind}, but {event.value!r} is none.")
        elif kind not in ("!", "str"):
            return self.refused(event, path, _no_tag(event))
        elif event.implicit[0]:
            value = resolve(event.value)
        if character := unfit(event.value):
            return self.refused(event, path, f"holds {character}. {NO_TEXT}")
        if isinstance(value, float) and not math.isfinite(value):
            return self.refused(event, path, f"must be a finite number. Got {event.value}.")
        return Node(value, self.at(event), bare)

    def refused(self, event: yaml.Event, path: KeyPath, text: str) -> Node:
        self.problem(event, path, text)
        return Node(None, self.at(event), broken=True)

    def has_tag(self, event: yaml.CollectionStartEvent, kind: str, path: KeyPath) -> bool:
        if event.tag in (None, "!", _CORE + kind):
            return False
        self.problem(event, path, _no_tag(event))
        return True


def resolve(text: str) -> Scalar:
    """What an unquoted scalar means."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if len(text) <= 300:  # longer ones are no numbers that anybody writes
        if _DECIMAL.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        if _FLOAT.fullmatch(text):
            return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def _no_tag(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> str:
    tag = str(event.tag).replace(_CORE, "!!")
    return f"the tag {tag} is not allowed: a parameter file holds plain values only."
