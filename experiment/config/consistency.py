"""Checks across blocks, which types and ranges of single blocks cannot express, and limits on the size of a grid.

A grid is counted before it is expanded, so that a typo in a number costs no time or memory.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from experiment.config.includes import OPEN_KEYS
from experiment.config.modes import REWIND
from experiment.config.schema.budget import Budget
from experiment.config.schema.parameter_file import NO_REWINDING, Mode, Parameters, Rewind
from experiment.config.tuning import tuning_faults
from experiment.config.value_tree import KeyPath, Node, Problem, find, walk
from experiment.config.variants import Variant, keep_steps
from experiment.errors import ConfigError

Found = Iterator[tuple[KeyPath, str]]
MOST_CELLS = 100_000
MOST_ENTRIES = {("customizations",): 1_000, ("experiments", "methods"): 1_000}


def inconsistencies(values: Mapping[str, Any]) -> Found:
    """Settings that contradict each other, each with the key to blame.

    Settings that are invalid on their own are ignored, so that no error hides another.

    Args:
        values: plain values of a whole file, retraining merged with training.
    """
    mode, rewind = _mode_and_rewind(values)
    yield from _epoch_to_rewind_to(values, mode, rewind)
    if rewind == "random" and mode not in NO_REWINDING and _whole(values, "retraining", "numEpochs") == 0:
        yield ("experiments", "rewind"), "random weights need retraining, but retraining.numEpochs is 0."
    num_nets = _whole(values, "experiments", "numNets") or 1
    if _at(values, "network", "weights") is not None and num_nets > 1 and _whole(values, "training", "numEpochs") == 0:
        what = "must be 1: with network.weights and training.numEpochs: 0 all networks are the same"
        yield ("experiments", "numNets"), f"{what}. Got {num_nets}."
    if mode == "gradual":
        yield from _steps_while_retraining(values)
    for key in ("distillation", "tune"):
        if mode == "train" and _at(values, "retraining", key) is not None:
            yield ("retraining", key), "has no effect in mode train, which retrains nothing. Remove it."
    yield from _tuning(values, mode, rewind)
    measure = _at(values, "experiments", "measure")
    if isinstance(measure, list) and "sensitivity" in measure and not _at(values, "experiments", "methods"):
        yield ("experiments", "measure"), "sensitivity compresses layers with methods, and there are none. Add methods."
    outputs = _whole(values, "network", "outputSize")
    for block in ("training", "retraining"):
        weight = _at(values, block, "lossKwargs", "weight")
        if isinstance(weight, list) and outputs is not None and len(weight) != outputs:
            what = f"must have one number for each of the {outputs} outputs. Got {len(weight)}."
            yield (block, "lossKwargs", "weight"), what


def _epoch_to_rewind_to(values: Mapping[str, Any], mode: str, rewind: str) -> Found:
    """Rewinding, and the tickets of a random control, need weights from the reference's training."""
    start, trained = _whole(values, "retraining", "startEpoch") or 0, _whole(values, "training", "numEpochs")
    goes_back = mode != "train" and (rewind == "weights" or (rewind == "random" and mode.startswith("cascade")))
    last = _whole(values, "retraining", "numEpochs")
    if goes_back and trained is not None and start >= trained and (last is None or start <= last):
        what = f"must be below training.numEpochs ({trained}): weights are rewound to the start of this epoch"
        yield ("retraining", "startEpoch"), f"{what}. Got {start}."


def _steps_while_retraining(values: Mapping[str, Any]) -> Found:
    """The steps of mode gradual lie within the retraining, and start from the whole network."""
    start, last = _whole(values, "retraining", "startEpoch") or 0, _whole(values, "retraining", "numEpochs")
    end, every = _whole(values, "gradual", "endEpoch"), _whole(values, "gradual", "every") or 1
    if end is not None and last is not None and start <= last and not start < end <= last:
        what = f"must be above retraining.startEpoch ({start}) and at most retraining.numEpochs ({last})"
        yield ("gradual", "endEpoch"), f"{what}. Got {end}."
    elif last is not None and start < last:
        epochs = max(1, (end if end is not None else (start + last) // 2) - start)
        if every > epochs:
            yield ("gradual", "every"), f"must be at most the {epochs} epochs from startEpoch to endEpoch. Got {every}."
    try:
        complete = Budget.read(_at(values, "experiments", "budget") or "parameters").complete
    except ConfigError:  # told elsewhere
        complete = False
    if complete:
        what = "mode gradual needs quantities without shares or amounts, whose shares are the keep ratios of spacing"
        yield ("experiments", "budget"), f"{what}. List them, as [flops, bytes]."


def _tuning(values: Mapping[str, Any], mode: str, rewind: str) -> Found:
    """There is a retraining to tune, and every combination of values is one of its settings."""
    yield from tuning_faults(_at(values, "retraining"))
    if _at(values, "retraining", "tune") is None or mode == "train":
        return
    start, last = _whole(values, "retraining", "startEpoch") or 0, _whole(values, "retraining", "numEpochs")
    if mode == "lc":
        yield ("retraining", "tune"), "cannot be used in mode lc, where learning and compression alternate. Remove it."
    elif last is not None and (last == 0 or (start == last and rewind != "random")):
        what = f"has no effect without epochs of retraining: startEpoch is {start}, numEpochs is {last}"
        yield ("retraining", "tune"), f"{what}. Remove it, or retrain."


def _mode_and_rewind(values: Mapping[str, Any]) -> tuple[str, str]:
    mode, rewind = _at(values, "experiments", "mode"), _at(values, "experiments", "rewind")
    mode = mode if mode in get_args(Mode) else ""
    return mode, rewind if rewind in get_args(Rewind) else "weights" if mode.endswith(REWIND) else "none"


def ambiguous_words(root: Node) -> Iterator[Problem]:
    """Unquoted yes, no, on, off and None among free arguments, whose type is not known."""
    meant = {"yes": "true", "on": "true", "no": "false", "off": "false", "none": "null"}
    for path, node in walk(root):
        word = (node.bare or "").lower()
        if word in meant and any(key in OPEN_KEYS for key in path):
            text = f"'{node.bare}' is ambiguous. Write {meant[word]}, or \"{node.bare}\" in quotes for text."
            yield Problem(node.place, path, text)


def _at(values: Any, *path: str) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _whole(values: Any, *path: str) -> int | None:
    value = _at(values, *path)
    return value if type(value) is int and value >= 0 else None


def lists_too_long(root: Node) -> Found:
    """Lists with too many entries to check."""
    for path, most in MOST_ENTRIES.items():
        node = find(root, path)
        if node is not None and isinstance(node.value, list) and len(node.value) > most:
            yield path, f"has {len(node.value):,} entries. At most {most:,} are allowed. Use several files."


def grid_too_large(variants: Sequence[Variant]) -> Found:
    """Whether all variants together have too many cells, with the key that contributes most."""
    cells = sum(math.prod(count for _, count, _ in _factors(v.parameters)) for v in variants)
    if cells > MOST_CELLS:  # so there is at least one variant
        factors = [*_factors(variants[0].parameters), (("customizations",), len(variants), "customizations")]
        product = " x ".join(f"{_number(count)} {what}" for _, count, what in factors if count > 1)
        key = max(factors, key=lambda factor: factor[1])[0]
        yield key, f"{product}: {_number(cells)} cells. At most {MOST_CELLS:,} are allowed."


def _factors(p: Parameters) -> list[tuple[KeyPath, int, str]]:
    """(key, number, unit) of the factors of a variant's number of cells, without references."""
    experiments, nets = p.experiments, (("experiments", "numNets"), p.experiments.num_nets, "networks")
    if experiments.mode == "train":
        return [nets]
    steps = 1 if experiments.search is not None else max(1, len(keep_steps(experiments)))
    return [
        nets,
        (("experiments", "numRepetitions"), experiments.num_repetitions, "repetitions"),
        (("experiments", "methods"), max(1, len(experiments.methods)), "methods"),
        (("experiments", "spacing"), steps, "keep ratios"),
    ]


def _number(count: int) -> str:
    return f"{count:,}" if count < 10**21 else "more than 10^21"
