"""YAML text as a tree of plain values with their lines.

Scalars follow YAML 1.2: `1e-4` and `.5` are numbers, `on`, `no` and `1:30` are text, `010` is ten. Keys are text.
No object is ever constructed: a tag such as `!!python/object` is an error.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from experiment.config.value_tree import MAX_NODES, KeyPath, Node, Place, Problem, Scalar, plain
from experiment.errors import ConfigError
from experiment.escaping import unfit

MAX_DEPTH = 100
MAX_BYTES = 4_000_000
MAX_SHOWN = 40  # characters in an error message about a file that is not a parameter file
NO_TEXT = "Use printable text without control characters."

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9](_?[0-9])*")
_BASED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?([0-9](_?[0-9])*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE = "tag:yaml.org,2002:"
_HINTS = {
    "cannot start any token": "A tab? Indent with spaces only, and quote text that starts with @, ` or %.",
    "mapping values are not allowed": "Is a ':' inside unquoted text, or is this line indented too far?",
    "could not find expected ':'": "Is the ':' after a key missing, or a quote not closed?",
    "expected <block end>": "Check the indentation of this line and of the lines above it.",
    "found undefined alias": "Define it with &name above this line.",
    "found another document": "Put each experiment into its own file.",
    "unexpected end of stream": "A quote or a bracket is not closed.",
    "expected ',' or": "A bracket is not closed, or a comma is missing.",
}


def read_yaml(path: Path, shown: str, problems: list[Problem]) -> Node:
    """Read a file whose top level is a mapping.

    Args:
        shown: the name of the file in error messages.
        problems: errors that do not prevent reading on are added here (duplicate keys, tags, infinite numbers).
    Raises: ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{shown}: is larger than {MAX_BYTES:,} bytes, too large for a parameter file.")
    if b"\0" in data:
        raise ConfigError(f"{shown}: is a binary file, not YAML text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start]
        raise ConfigError(f"{shown}:{line}: is not UTF-8 text (byte 0x{byte:02x}). Save it as UTF-8.") from error
    root = parse(text, shown, problems)
    if root is None:
        raise ConfigError(f"{shown}:1: is empty. Expected a mapping, for instance 'network: ...'.")
    if not isinstance(root.value, dict):
        got = "a list" if isinstance(root.value, list) else repr(root.value)
        got = got if len(got) <= MAX_SHOWN else "text"
        raise ConfigError(f"{shown}:{root.place.line}: must contain a mapping ('key: value' lines). Got {got}.")
    return root


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that this program wrote, as plain values; safe for hostile files.

    Raises: ConfigError: the file is invalid.
    """
    problems: list[Problem] = []
    root = read_yaml(path, str(path), problems)
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    found: dict[str, Any] = plain(root)
    return found


def parse(text: str, shown: str, problems: list[Problem]) -> Node | None:
    """Parse one YAML document; None if it is empty.

    Raises: ConfigError: the text is not YAML, has several documents, is nested too deeply or too large.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{_place(event, shown)}: nested more than {MAX_DEPTH} levels deep.")
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{shown}:{line}: contains a control character (#x{error.character:04x}).") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "unreadable"
        hint = next((f" {hint}" for part, hint in _HINTS.items() if part in what), "")
        raise ConfigError(f"{shown}:{mark.line + 1 if mark else 1}: not valid YAML: {what}.{hint}") from error
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value and not root.tag and root.style is None):
        return None
    return _Converter(shown, problems).node(root, ())


def _place(item: Any, shown: str) -> Place:
    """The line of an event or node of PyYAML."""
    return Place(shown, item.start_mark.line + 1)


class _Loader(yaml.BaseLoader):
    """Makes nodes whose tag is empty unless it is written in the text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        return ""


class _Converter:
    """Converts PyYAML's nodes to value trees, with aliases expanded."""

    def __init__(self, shown: str, problems: list[Problem]) -> None:
        self.shown, self.problems = shown, problems
        self.count = 0
        self.open: list[yaml.Node] = []  # from the root to the current node

    def node(self, node: yaml.Node, path: KeyPath) -> Node:
        place = _place(node, self.shown)
        self.count += 1
        if self.count > MAX_NODES:
            raise ConfigError(f"{place}: more than {MAX_NODES:,} values after expanding aliases.")
        if node in self.open:
            raise ConfigError(f"{place}: contains an alias of itself.")
        if node.tag:
            self.problem(node, path, f"the tag {node.tag.replace(_CORE, '!!')} is not allowed: use plain values only.")
            return Node(None, place, broken=True)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        self.open.append(node)
        value: list[Node] | dict[str, Node]
        if isinstance(node, yaml.SequenceNode):
            value = [self.node(item, (*path, i)) for i, item in enumerate(node.value)]
        else:
            value = self.mapping(node, path)
        self.open.pop()
        return Node(value, place)

    def problem(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(_place(node, self.shown), path, text))

    def mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Node]:
        children: dict[str, Node] = {}
        merged: dict[str, Node] | None = None
        for key_node, value_node in node.value:
            key = self.key(key_node, path)
            child = self.node(value_node, (*path, key))
            child = Node(child.value, _place(key_node, self.shown), child.bare, child.broken)  # its key's line
            if key == "<<" and key_node.style is None:
                if merged is not None:
                    self.problem(key_node, (*path, key), "is given twice. Use one list: `<<: [*a, *b]`.")
                merged = self.merged(key_node, child, path) if merged is None else merged
            elif key in children:
                first = children[key].place.line
                self.problem(key_node, (*path, key), f"is given twice (first in line {first}). Keep one.")
            else:
                children[key] = child
        return {**(merged or {}), **children}

    def key(self, node: yaml.Node, path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.problem(node, path, "a key must be plain text.")
            return "?"
        if character := unfit(node.value):
            self.problem(node, path, f"a key contains {character}. {NO_TEXT}")
        return str(node.value)

    def merged(self, key: yaml.Node, child: Node, path: KeyPath) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for part in child.value if isinstance(child.value, list) else [child]:
            if isinstance(part.value, dict):
                found = {**part.value, **found}
            else:
                self.problem(key, (*path, "<<"), "must be an alias of a mapping, or a list of such aliases.")
        return found

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Node:
        place = _place(node, self.shown)
        value = resolve(node.value) if node.style is None else node.value
        text = ""
        if character := unfit(node.value):
            text = f"contains {character}. {NO_TEXT}"
        elif isinstance(value, float) and not math.isfinite(value):
            text = f"must be a finite number. Got {node.value}."
        if text:
            self.problem(node, path, text)
            return Node(None, place, broken=True)
        return Node(value, place, node.value if node.style is None else None)


def resolve(text: str) -> Scalar:
    """The value of an unquoted scalar."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if len(text) <= 300:  # longer ones are not numbers
        if _DECIMAL.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        if _FLOAT.fullmatch(text):
            return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text
