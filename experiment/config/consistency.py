"""Checks across blocks, which types and ranges of single blocks cannot express."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from experiment.config.includes import OPEN_KEYS
from experiment.config.modes import REWIND
from experiment.config.schema.parameter_file import Mode, Rewind
from experiment.config.value_tree import KeyPath, Node, Problem, walk

Found = Iterator[tuple[KeyPath, str]]


def inconsistencies(values: Mapping[str, Any]) -> Found:
    """Settings that contradict each other, each with the key to blame.

    Settings that are invalid on their own are ignored, so that no error hides another.

    Args:
        values: plain values of a whole file, retraining merged with training.
    """
    mode, rewind = _mode_and_rewind(values)
    yield from _epoch_to_rewind_to(values, mode, rewind)
    if rewind == "random" and mode not in ("train", "lc") and _whole(values, "retraining", "numEpochs") == 0:
        yield ("experiments", "rewind"), "random weights need retraining, but retraining.numEpochs is 0."
    num_nets = _whole(values, "experiments", "numNets") or 1
    if _at(values, "network", "weights") is not None and num_nets > 1 and _whole(values, "training", "numEpochs") == 0:
        what = "must be 1: with network.weights and training.numEpochs: 0 all networks are the same"
        yield ("experiments", "numNets"), f"{what}. Got {num_nets}."
    if mode == "train" and _at(values, "retraining", "distillation") is not None:
        yield ("retraining", "distillation"), "has no effect in mode train, which retrains nothing. Remove it."
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
