"""The arguments of torch's and torchvision's classes, read from their installed source: nothing is imported.

What the source does not tell (`*args`, `**kwargs`, a class that is not found) is left to the run, which makes each.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# kind -> the package, its files that hold the classes, and how many arguments of theirs are not the user's
_SOURCES = {
    "optimizer": ("torch", "optim/*.py", 1),
    "scheduler": ("torch", "optim/lr_scheduler.py", 1),
    "loss": ("torch", "nn/modules/loss.py", 0),
    "transform": ("torchvision", "transforms/v2/_*.py", 0),
}
_OURS = {"PolyLR": "_poly_lr", "WarmupLR": "_warmup_lr"}
_SCHEDULE = Path(__file__).parents[2] / "training/schedule.py"


@dataclass(frozen=True)
class Signature:
    """What a class takes, which of that it needs, and which has a text as its default."""

    known: tuple[str, ...]
    required: tuple[str, ...] = ()
    texts: frozenset[str] = frozenset()


@lru_cache
def signature(kind: str, name: str) -> Signature | None:
    """The arguments of the optimizer, scheduler, loss or transform of that name; None where the source does not tell.

    The parameters of an optimizer and the optimizer of a scheduler are not among them.
    """
    if kind == "transform" and name == "ToTensor":  # a class of ours takes the place of torchvision's
        return Signature(())
    package, files, skipped = _SOURCES[kind]
    if name in _OURS:
        functions = {node.name: node for node in ast.walk(_tree(_SCHEDULE)) if isinstance(node, ast.FunctionDef)}
        return _arguments(functions[_OURS[name]], skipped)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob(files))
    init = _init(name, found)
    return None if init is None else _arguments(init, skipped + 1)


def _init(name: str, files: list[Path]) -> ast.FunctionDef | None:
    """The `__init__` that a class has or inherits."""
    for node in _classes(name, files):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                return part
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        return next((init for base in bases if base != name and (init := _init(base, files)) is not None), None)
    return None


def _classes(name: str, files: list[Path]) -> Iterator[ast.ClassDef]:
    declared = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
    for file in files:
        if declared.search(_text(file)):
            yield from (n for n in _tree(file).body if isinstance(n, ast.ClassDef) and n.name == name)


def _arguments(function: ast.FunctionDef, skipped: int) -> Signature | None:
    given = function.args
    if given.vararg is not None or given.kwarg is not None:
        return None
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    taken = [(a.arg, d) for a, d in zip((*positional, *given.kwonlyargs), defaults, strict=True)][skipped:]
    return Signature(
        tuple(name for name, _ in taken),
        tuple(name for name, default in taken if default is None),
        frozenset(name for name, d in taken if isinstance(d, ast.Constant) and isinstance(d.value, str)),
    )


@lru_cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@lru_cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(_text(file))
