"""How a name in a parameter file becomes an object: dictionaries of lazy entries, and import paths of user code.

The dictionaries themselves (`METHODS`, `NETWORKS`, `DATASETS`) live in their packages' `__init__`, without torch:
an entry names where its code is, and only `resolve` imports it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from experiment.errors import ConfigError
from experiment.user_code import find_own_code

NAMES_CODE = "names code"  # in the metadata of a settings field that holds an import path


class InputShape(tuple[int, ...]):
    """The shape of one input without the batch, and whether it holds token ids (int64) instead of numbers."""

    tokens: bool

    def __new__(cls, sides: Iterable[int], *, tokens: bool = False) -> InputShape:
        shape = super().__new__(cls, sides)
        shape.tokens = tokens
        return shape

    def __getnewargs_ex__(self) -> tuple[tuple[tuple[int, ...]], dict[str, bool]]:
        return (tuple(self),), {"tokens": self.tokens}


InputForm: TypeAlias = InputShape | dict[str, "InputForm"] | tuple["InputForm", ...]
"""What one sample of a network's inputs looks like: a shape, or several by keyword or position."""


@dataclass(frozen=True)
class NetworkEntry:
    """A network: `target` is a factory `(input_shape, output_size, **settings) -> nn.Module`.

    `version` enters the keys of results; raise it when the network made from the same settings changes.
    """

    name: str
    target: str
    version: int = 1


@dataclass(frozen=True)
class DatasetEntry:
    """A dataset: `target` is a loader (see `experiment.datasets`).

    `task` says what its targets mean, see `experiment.tasks`.
    `num_classes`, `input_shape` (channels, height, width) and `num_train` (images of the training part, before the
    validation part is taken from it) are None if the user's files set them. `files` is a function that lists what a
    part is read from (see `experiment.datasets.file_stamp`), empty if the content cannot change.
    """

    name: str
    target: str
    num_classes: int | None
    input_shape: tuple[int, int, int] | None
    version: int = 1
    num_train: int | None = None
    files: str = ""
    task: str = "classification"


@dataclass(frozen=True)
class TaskEntry:
    """A task: `target` is the `Task` (see `experiment.tasks.task`), `loss` the name of its default loss.

    `version` enters the keys of results; raise it when a metric changes.
    """

    name: str
    target: str
    loss: str
    version: int = 1


@dataclass(frozen=True)
class MethodEntry:
    """A compression method.

    Attributes:
        label: its name in parameter files and results.
        settings: a frozen dataclass, in a module that does not import torch.
        target: `package.module:name` of the class or function that makes the method from its settings.
        kind: `lowrank`, `filter`, `weight`, `mixed` (several of these), `quantization`,
            `compose` (several methods) or `none` (no compression).
        aliases: other names that parameter files may use.
        preset: settings with other defaults than those of the dataclass.
        version: enters the keys of results; raise it when the method's outcome changes.
        restarts: start every keep ratio from the reference network, even in a cascade.
        needs_classes: targets must be class numbers.
    """

    label: str
    settings: type
    target: str
    kind: str
    aliases: tuple[str, ...] = ()
    preset: Mapping[str, object] = field(default_factory=dict, hash=False)
    version: int = 1
    restarts: bool = False
    needs_classes: bool = False


def resolve(target: str) -> object:
    """Import what `package.module:name` points to.

    Raises: ConfigError: the module or the name in it does not exist, or the module fails on import.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"'{target}' is not an import path. Expected package.module:name.")
    find_own_code()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"cannot import '{module_name}' for '{target}': {error}. Is it installed, or in the working directory?"
        ) from error
    except Exception as error:  # any error of the user's module
        raise ConfigError(
            f"'{module_name}' of '{target}' fails on import: {type(error).__name__}: {str(error).rstrip('.')}."
        ) from error
    if attribute not in vars(module):
        raise ConfigError(f"module '{module_name}' has no '{attribute}'.{suggestion(attribute, vars(module))}")
    return vars(module)[attribute]


def is_import_path(name: str) -> bool:
    """Whether a name in a parameter file is `package.module:attribute` rather than a registered name."""
    return ":" in name


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to a misspelt one, if any is close."""
    by_folded = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[near[0]] if near else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for a near miss, else an empty string."""
    near = near_miss(name, known)
    return "" if near is None else f" Did you mean '{near}'?"


def no_such_argument(name: str, argument: str, known: Sequence[str]) -> str:
    """An error about an argument that `name` does not take, with the ones that it takes."""
    takes = f"takes {', '.join(known)}" if known else "takes no arguments"
    return f"{name} has no such argument.{suggestion(argument, known)} It {takes}."
