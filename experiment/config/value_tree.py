"""A parameter file as a tree of values, each with the file and line where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from experiment.errors import ConfigError

Scalar = str | int | float | bool | None
KeyPath = tuple["str | int", ...]
Kind = Literal["missing", "unknown", "value"]

MAX_NODES = 100_000  # a file that aliases or includes expand beyond this is a mistake or an attack

WHOLE = frozenset({"budget"})  # keys of mappings that are never merged: limits that are not named again do not hold
# Key whose value determines the meaning of a neighboring mapping: Adam's arguments are not merged into SGD's.
CHOSEN_BY = {"optimizerKwargs": "optimizer", "lossKwargs": "loss", "settings": "name"}


class Place(NamedTuple):
    """Where a value was written: a file and line, or (without a line) a `--set` of the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A scalar, a mapping or a list, with the place where it was written.

    Attributes:
        bare: the text of an unquoted scalar, else None.
        broken: the value was rejected while reading: no further errors are reported about it.
    """

    value: Scalar | dict[str, Node] | list[Node]
    place: Place
    bare: str | None = None
    broken: bool = False


@dataclass(frozen=True)
class Problem:
    """One error in a parameter file.

    Attributes:
        key: the key to blame; empty for the file as a whole.
        kind: `missing` for a required key that is absent, `unknown` for a key that does not exist, else `value`.
    """

    place: Place
    key: KeyPath
    text: str
    kind: Kind = "value"

    def __str__(self) -> str:
        key, place = dotted(self.key), str(self.place)
        where = f"--set {key}"
        if where == place or where.startswith((f"{place}.", f"{place}[")):  # a part of the value that was set
            return f"{where}: {self.text}"
        return f"{place}: {key}: {self.text}" if key else f"{place}: {self.text}"


def plain(node: Node) -> Any:
    """The value without places, as a deep copy."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def merge(base: Node, top: Node) -> Node:
    """`top` on `base`: mappings are merged deeply, everything else is replaced.

    Arguments are replaced as a whole if `top` also changes what they belong to: the `optimizerKwargs` of a new
    `optimizer` are not merged into those of the old one. A budget is always replaced as a whole.
    """
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for key, child in top.value.items():
        replaces = key not in merged or key in WHOLE or _chooses_anew(key, base.value, top.value)
        merged[key] = child if replaces else merge(merged[key], child)
    return Node(merged, top.place)


def _chooses_anew(key: str, base: dict[str, Node], top: dict[str, Node]) -> bool:
    chooser = CHOSEN_BY.get(key, "")
    return chooser in top and (chooser not in base or base[chooser].value != top[chooser].value)


def set_at(node: Node, path: KeyPath, value: Node) -> Node:
    """The tree with one value replaced; missing mappings on the path are created.

    The short form of a dataset or method, its bare name, is expanded to `{name: ...}` if the path continues below it.

    Raises: IndexError: with the length of a list that is too short.
    """
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(key, int):
        items = list(node.value) if isinstance(node.value, list) else []
        if key >= len(items):
            raise IndexError(len(items))
        items[key] = set_at(items[key], rest, value)
        return Node(items, node.place)
    children = dict(node.value) if isinstance(node.value, dict) else {}
    if isinstance(node.value, str):
        children["name"] = node
    children[key] = set_at(children.get(key, Node({}, value.place)), rest, value)
    return Node(children, node.place if isinstance(node.value, dict) else value.place)


def without(node: Node, path: KeyPath) -> Node:
    """The tree without the key at `path`, a path of mappings, if there is one."""
    if not isinstance(node.value, dict) or path[0] not in node.value:
        return node
    children = dict(node.value)
    child = children.pop(str(path[0]))
    if len(path) > 1:
        children[str(path[0])] = without(child, path[1:])
    return Node(children, node.place, broken=node.broken)


def nearest(node: Node, path: KeyPath) -> Node:
    """The node at `path`, or its nearest ancestor that exists."""
    for key in path:
        child = _child(node, key)
        if child is None:
            return node
        node = child
    return node


def find(node: Node, path: KeyPath) -> Node | None:
    """The node at `path`, if there is one."""
    found: Node | None = node
    for key in path:
        found = None if found is None else _child(found, key)
    return found


def _child(node: Node, key: str | int) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(key)) if isinstance(key, str) else None
    if isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
        return node.value[key]
    return None


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every node with its path, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            yield from walk(child, (*path, name))
    elif isinstance(node.value, list):
        for i, child in enumerate(node.value):
            yield from walk(child, (*path, i))


def refuse_giant(root: Node) -> None:
    """Raises: ConfigError: the tree, with all aliases and includes expanded, has more than MAX_NODES values."""
    for count, _ in enumerate(walk(root)):
        if count >= MAX_NODES:
            raise ConfigError(f"{root.place}: more than {MAX_NODES:,} values after expanding aliases and includes.")


def dotted(path: KeyPath) -> str:
    """`experiments.spacing[0].minVal`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
