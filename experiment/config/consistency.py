"""What types and ranges cannot say: whether the values of a file go together.

Every check reads only what it needs and is silent where that is itself wrong, so that one mistake hides no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from experiment.config.includes import OPEN_KEYS
from experiment.config.modes import REWIND
from experiment.config.schema.block import Epoch, Whole
from experiment.config.schema.lc import LearnCompress
from experiment.config.schema.parameter_file import Mode, Rewind, Spacing
from experiment.config.spacing import MAX_RATIOS
from experiment.config.value_tree import KeyPath, Node, Problem, dotted, walk

Fault = tuple[KeyPath, str]


def faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """What does not go together in a whole file (retraining already on top of training), each with the key to blame."""
    yield from _epochs(values)
    yield from _random_weights(values)
    yield from _grid(values)
    yield from _given_weights(values)
    yield from _distillation(values)
    yield from _learn_compress(values)
    yield from _search(values)


def _learn_compress(values: Mapping[str, Any]) -> Iterator[Fault]:
    block = _valid(LearnCompress, values, "lc")
    if block is not None and block.lr_end is not None and (block.lr_decay is not None or block.lr_milestones):
        other = "lrDecay" if block.lr_decay is not None else "lrMilestones"
        what = "has no effect beside lrEnd, which says where the learning rate ends each time. Remove one of them."
        yield ("lc", other), what
    if block is not None and (late := [step for step in block.lr_milestones if step >= block.steps]):
        yield ("lc", "lrMilestones"), f"must lie below steps ({block.steps}), the steps that are made. Got {late[0]}."
    if block is not None and block.mu_cap < block.mu_init:
        yield ("lc", "muCap"), f"must be at least muInit ({block.mu_init:g}). Got {block.mu_cap:g}."
    if _valid(Mode, values, "experiments", "mode") != "lc":
        return
    iterations = _valid(Whole, values, "experiments", "retrainIterations", default=-1)
    if iterations is not None and iterations >= 1:
        what = "has no effect in mode lc, where every keep ratio starts from the reference network. Remove it."
        yield ("experiments", "retrainIterations"), what


def _search(values: Mapping[str, Any]) -> Iterator[Fault]:
    key: KeyPath = ("experiments", "search")
    if _at(values, *key) is None:
        return
    mode = _valid(Mode, values, "experiments", "mode")
    if mode == "train":
        yield key, "has no effect in mode train, which compresses nothing. Remove it."
    elif mode is not None and mode.startswith("cascade"):
        what = "needs mode retrain, retrain-rewind or lc, where every network starts from the reference network"
        yield key, f"{what}. Got {mode}."
    if _at(values, "experiments", "spacing"):
        yield key, "stands in the place of spacing, for keep ratios are searched. Remove one of them."
    iterations = _valid(Whole, values, "experiments", "retrainIterations", default=-1)
    if mode != "lc" and iterations is not None and iterations >= 1:
        what = "has no effect beside search, which retrains every network that it makes. Remove it."
        yield ("experiments", "retrainIterations"), what


def _given_weights(values: Mapping[str, Any]) -> Iterator[Fault]:
    network = values.get("network")
    if not isinstance(network, Mapping) or network.get("weights") is None:
        return
    num_nets = _valid(Whole, values, "experiments", "numNets", default=1)
    if num_nets is not None and num_nets > 1 and _valid(Epoch, values, "training", "numEpochs") == 0:
        what = "must be 1, for network.weights without training (numEpochs: 0) makes all networks equal"
        yield ("experiments", "numNets"), f"{what}. Got {num_nets}."


def _distillation(values: Mapping[str, Any]) -> Iterator[Fault]:
    key: KeyPath = ("retraining", "distillation")
    if _at(values, *key) is not None and _valid(Mode, values, "experiments", "mode") == "train":
        yield key, "has no effect in mode train, which retrains nothing. Remove it."


def _epochs(values: Mapping[str, Any]) -> Iterator[Fault]:
    key: KeyPath = ("retraining", "startEpoch")
    start = _valid(Epoch, values, *key, default=0)
    last = _valid(Epoch, values, "retraining", "numEpochs")
    trained = _valid(Epoch, values, "training", "numEpochs")
    if start is None:
        return
    if last is not None and start > last:
        what = f"must be at most numEpochs ({last}), for the epochs startEpoch to numEpochs are run"
        yield key, f"{what}. Got {start}."
    elif trained is not None and start >= trained and _goes_back(values):
        what = f"with rewinding the weights go back to the start of this epoch of a training of {trained} epochs"
        yield key, f"{what}, so it must be below that. Got {start}."


def _goes_back(values: Mapping[str, Any]) -> bool:
    """Whether weights of the reference's training are needed: to rewind to, or for the tickets of a random control."""
    mode, rewind = _mode_and_rewind(values)
    return mode != "train" and (rewind == "weights" or (rewind == "random" and mode.startswith("cascade")))


def _random_weights(values: Mapping[str, Any]) -> Iterator[Fault]:
    mode, rewind = _mode_and_rewind(values)
    given = _at(values, "experiments", "rewind") is not None
    if mode in ("train", "lc") and given:
        why = "which compresses nothing" if mode == "train" else "where the reference's weights learn on"
        yield ("experiments", "rewind"), f"has no effect in mode {mode}, {why}. Remove it."
    elif rewind == "random" and _valid(Epoch, values, "retraining", "numEpochs") == 0:
        text = "random needs retraining, for random weights have learnt nothing, and retraining.numEpochs is 0."
        yield ("experiments", "rewind"), text


def _mode_and_rewind(values: Mapping[str, Any]) -> tuple[str, str]:
    mode = _valid(Mode, values, "experiments", "mode", default="") or ""
    meant = "weights" if mode.endswith(REWIND) else "none"
    return mode, _valid(Rewind, values, "experiments", "rewind", default=meant) or meant


def _grid(values: Mapping[str, Any]) -> Iterator[Fault]:
    mode = _valid(Mode, values, "experiments", "mode")
    blocks = _at(values, "experiments", "spacing")
    if mode == "train" or not isinstance(values.get("experiments"), dict):
        return
    if not blocks or not isinstance(blocks, list):
        return
    good: dict[int, list[float]] = {}
    for i in range(len(blocks)):
        block = _valid(Spacing, values, "experiments", "spacing", i)
        fault = None if block is None else _block(block)
        if fault is not None:
            yield ("experiments", "spacing", i, "minVal"), fault
        elif block is not None:
            good[i] = block.ratios()
        if sum(map(len, good.values())) > MAX_RATIOS:
            yield ("experiments", "spacing", i), f"more than {MAX_RATIOS:,} keep ratios in all."
            return
    yield from _ratios(good, falling=(mode or "").startswith("cascade"))
    yield from _iterations(values, sum(map(len, good.values())) if len(good) == len(blocks) else None)


def _block(block: Any) -> str | None:
    if block.type == "manual":
        return None
    if block.type == "harmonic":
        power = block.log10_ratios()
        what = f"makes about 10^{power:.0f} keep ratios with numIntervals {block.num_intervals:g}: too many"
        return f"{what}. Got {block.min_val:g}." if power > math.log10(MAX_RATIOS) else None
    if block.min_val > block.max_val:
        return f"must be at most maxVal ({block.max_val:g}). Got {block.min_val:g}."
    return None


def _ratios(blocks: Mapping[int, list[float]], falling: bool) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    previous = 1.0
    for i, ratios in blocks.items():
        for ratio in ratios:
            shown = f"{ratio:.6g}"  # as the names of results show it: two that look alike are one
            what = ""
            if not 0 < ratio <= 1:
                what = f"gives a keep ratio outside (0, 1]: {ratio}."
            elif shown in seen:
                other = "by this block itself" if seen[shown] == i else f"by spacing[{seen[shown]}]"
                what = f"gives the keep ratio {shown} again, which is given {other}. Each may be there once."
            elif falling and ratio > previous:
                what = f"keep ratios must fall from one to the next in a cascade. Got {shown} after {previous:.6g}."
            if what:
                yield ("experiments", "spacing", i), what
                break
            seen[shown] = i
            previous = ratio


def _iterations(values: Mapping[str, Any], num_ratios: int | None) -> Iterator[Fault]:
    key: KeyPath = ("experiments", "retrainIterations")
    iterations = _valid(Whole, values, *key, default=-1)
    if num_ratios is not None and iterations is not None and iterations > num_ratios:
        yield key, f"must be at most the number of keep ratios ({num_ratios}), or -1 for all. Got {iterations}."


def ambiguous_words(root: Node) -> Iterator[Problem]:
    """Unquoted yes, no, on, off and None among free arguments, where nothing says whether they are meant as text."""
    meant = {"yes": "true", "on": "true", "no": "false", "off": "false", "none": "null"}
    for path, node in walk(root):
        word = (node.bare or "").lower()
        if word in meant and any(key in OPEN_KEYS for key in path):
            text = f"'{node.bare}' may be text or not. Write {meant[word]}, or \"{node.bare}\" in quotes for text."
            yield Problem(node.place, f"{dotted(path)}: {text}")


def _at(values: Any, *path: str | int) -> Any:
    for key in path:
        if isinstance(values, dict):
            values = values.get(str(key))
        elif isinstance(values, list) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            return None
    return values


def _valid(kind: Any, values: Mapping[str, Any], *path: str | int, default: Any = None) -> Any:
    """The value at a path if it is of the kind, the default if there is none, None if it is something else."""
    value = _at(values, *path)
    if value is None:
        return default
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        return None


@lru_cache(maxsize=8)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
