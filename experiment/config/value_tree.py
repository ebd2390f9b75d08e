"""A parameter file as a tree of values, each of which knows the file and line where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiment.errors import ConfigError

Scalar = str | int | float | bool | None
KeyPath = tuple["str | int", ...]

MAX_NODES = 100_000  # a file that aliases or includes blow up beyond this is a mistake or an attack

# What chooses the meaning of a mapping beside it: Adam's arguments do not go on top of SGD's.
CHOSEN_BY = {"optimizerKwargs": "optimizer", "lossKwargs": "loss", "settings": "name"}


class Place(NamedTuple):
    """Where something was written: a file and its line, or (without a line) a `--set` of the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A scalar, a mapping or a list with the place where it was written.

    `bare` is the text of an unquoted scalar, None for everything else; `broken` marks a value that was refused while
    reading, so that nothing else complains about it.
    """

    value: Scalar | dict[str, Node] | list[Node]
    place: Place
    bare: str | None = None
    broken: bool = False


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, at the place where it was written."""

    place: Place
    text: str

    def __str__(self) -> str:
        key = self.place.source.removeprefix("--set ")
        text = self.text.removeprefix(f"{key}: ") if self.place.line is None else self.text  # the key is there already
        return f"{self.place}: {text}"


def plain(node: Node) -> Any:
    """The value without its places; nothing in it is shared with anything else."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def merge(base: Node, top: Node) -> Node:
    """`top` on `base`: mappings merge deeply, everything else replaces.

    Arguments are replaced together with what they belong to: a `top` that changes `optimizer` brings its own
    `optimizerKwargs`, where it has any.
    """
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for key, child in top.value.items():
        replaces = key not in merged or _chooses_anew(key, base.value, top.value)
        merged[key] = child if replaces else merge(merged[key], child)
    return Node(merged, top.place)


def _chooses_anew(key: str, base: dict[str, Node], top: dict[str, Node]) -> bool:
    chooser = CHOSEN_BY.get(key, "")
    return chooser in top and (chooser not in base or base[chooser].value != top[chooser].value)


def set_at(node: Node, path: KeyPath, value: Node) -> Node:
    """A copy of the tree with one value set; mappings that are missing on the way are made.

    The short form of a dataset or method, its bare name, becomes `{name: ...}` where the path goes below it.
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
    return Node(children, node.place)


def nearest(node: Node, path: KeyPath) -> Node:
    """The node at `path`, or its nearest ancestor that exists."""
    for key in path:
        child = _child(node, key)
        if child is None:
            return node
        node = child
    return node


def exists(node: Node, path: KeyPath) -> bool:
    """Whether the tree has a value at `path`."""
    for key in path:
        child = _child(node, key)
        if child is None:
            return False
        node = child
    return True


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
    """Raises: ConfigError: the tree, with all its aliases and includes written out, is beyond any honest use."""
    for count, _ in enumerate(walk(root)):
        if count >= MAX_NODES:
            raise ConfigError(
                f"{root.place}: more than {MAX_NODES:,} values once aliases and includes are written out."
            )


def dotted(path: KeyPath) -> str:
    """`experiments.spacing[0].minVal`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
