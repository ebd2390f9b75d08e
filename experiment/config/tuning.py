"""Tuned retraining: the settings of every trial, which are the combinations of the values of `retraining.tune`."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from experiment.config.error_messages import problems, show
from experiment.config.modes import retraining
from experiment.config.schema.parameter_file import Parameters
from experiment.config.schema.training import Retraining, Training
from experiment.config.setting_paths import keys_by_block
from experiment.config.value_tree import KeyPath, Node, Place
from experiment.config.variants import compact

MOST_TRIALS = 100
_SAME_EPOCHS = "cannot be tuned: all trials of all methods retrain for the same number of epochs. Use customizations."
NOT_TUNED = {
    "numEpochs": _SAME_EPOCHS,
    "startEpoch": _SAME_EPOCHS,
    "testBatchSize": "cannot be tuned: it changes no network. Remove it.",
    "tune": "cannot be tuned. Remove it.",
}


@dataclass(frozen=True)
class Trial:
    """One retraining of a cell.

    Attributes:
        values: dotted key -> value; empty if nothing is tuned.
        block: the settings of retraining with these values.
    """

    values: Mapping[str, Any]
    block: Retraining

    @property
    def name(self) -> str:
        """`optimizerKwargs.lr=0.03`."""
        return ", ".join(f"{key}={compact(value)}" for key, value in self.values.items())


def trials(p: Parameters) -> list[Trial]:
    """The retrainings of every cell, in the order in which they are run; a single one if nothing is tuned."""
    block = retraining(p)
    plain = block.model_dump(by_alias=True, exclude={"tune"})
    tried = _combinations(block.tune or {})
    return [Trial(values, Retraining.model_validate(_with_values(plain, values))) for values in tried]


def num_trials(p: Parameters) -> int:
    """Number of retrainings of every cell."""
    return math.prod(map(len, (p.retraining.tune or {}).values()))


def trained_blocks(p: Parameters) -> list[tuple[KeyPath, Training]]:
    """The settings of every training of a file, each with the key to blame for them."""
    place = ("retraining",) if p.retraining.tune is None else ("retraining", "tune")
    return [(("training",), p.training), *((place, trial.block) for trial in trials(p))]


def tuning_faults(block: object) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with `tune` in the plain values of the block `retraining`, if the block is right without it."""
    tune = block.get("tune") if isinstance(block, dict) else None
    if not isinstance(block, dict) or not isinstance(tune, dict) or _errors(block, {}):
        return
    tune = Retraining.model_validate({**block, "tune": tune}).tune or {}
    found = list(_wrong_lists(tune)) or [
        f for values in _combinations(tune) for f in _wrong_values(block, tune, values)
    ]
    yield from ((("retraining", "tune", *key), text) for key, text in dict.fromkeys(found))


def _wrong_lists(tune: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    if not tune:
        yield (), "names nothing to tune. Remove it, or name settings."
    for key, values in tune.items():
        if (text := NOT_TUNED.get(key.partition(".")[0])) is not None:
            yield (key,), text
        elif key in keys_by_block()["training.optimizerKwargs"]:
            yield (key,), f"unknown key. Write optimizerKwargs.{key}."
        elif not isinstance(values, list):
            yield (key,), f"must be a list of values to try. Got {show(values)}."
        elif len(values) < 2:
            yield (key,), f"must list at least two values to try. Got {len(values)}."
        elif again := [value for i, value in enumerate(values) if value in values[:i]]:
            yield (key,), f"lists {compact(again[0])} twice."
    number = math.prod(len(values) for values in tune.values() if isinstance(values, list))
    if number > MOST_TRIALS:
        yield (), f"has {number:,} combinations of values. At most {MOST_TRIALS} are allowed."


def _wrong_values(
    block: Mapping[str, Any], tune: Mapping[str, Sequence[Any]], values: Mapping[str, Any]
) -> Iterator[tuple[KeyPath, str]]:
    """The errors of a combination, each with the value to blame or, if it does not exist, the key."""
    nowhere = Node({}, Place(""))
    for problem in (problem for error in _errors(block, values) for problem in problems([error], nowhere)):
        path, at = problem.key[1:], list[str | int]()
        for key, value in values.items():
            parts = tuple(key.split("."))
            if path[: len(parts)] == parts[: len(path)]:
                itself = problem.kind == "unknown" and path == parts
                at = [key] if itself else [key, tune[key].index(value), *path[len(parts) :]]
        yield tuple(at), problem.text


def _errors(block: Mapping[str, Any], values: Mapping[str, Any]) -> list[ErrorDetails]:
    try:
        Retraining.model_validate(_with_values({**block, "tune": None}, values))
    except ValidationError as error:
        return [{**each, "loc": ("retraining", *each["loc"])} for each in error.errors(include_url=False)]
    return []


def _combinations(tune: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    keys = sorted(tune)  # the order of keys in a file has no meaning, and is not part of a cell's key
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(tune[key] for key in keys))]


def _with_values(block: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """A block with other values at dotted keys; missing mappings on the way are created."""
    changed = dict(block) if isinstance(block, Mapping) else {}
    for path, value in values.items():
        key, dot, rest = path.partition(".")
        changed[key] = _with_values(changed.get(key), {rest: value}) if dot else value
    return changed
