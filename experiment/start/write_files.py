"""The text of a parameter file and of its small twin, with comments from the descriptions of the keys."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from experiment.config.setting_paths import description

WIDTH = 120
NOTES = {  # instead of the first sentence of a description
    "network.dataset": "settings.root of a dataset in files is absolute, below --data, or relative to here",
    "training.numEpochs": "passes over the training data",
    "training.lrSchedulers": "stepKwargs count epochs; the factors of several multiply",
    "retraining": "of every compressed network: the block training, with these changes",
    "retraining.startEpoch": "the epochs from this one on again, with their learning rates",
    "experiments.methods": "others are in docs/methods; `name: ..., settings: ...` changes one",
    "experiments.mode": "every size from the trained network; others are cascade, gradual and lc",
    "experiments.numNets": "trained from different random weights",
    "experiments.spacing": "the shares of the parameters to keep",
}


def file_text(head: list[str], values: Mapping[str, Any], *, described: bool) -> str:
    """YAML below lines of comment, with the description of every key that has room for it, or without."""
    lines = [f"# {part}".rstrip() for line in head for part in textwrap.wrap(line, WIDTH - 2) or [""]]
    for name, value in values.items():
        lines.append("")
        lines += _entry((name,), value, "", described)
    return "\n".join(lines) + "\n"


def _entry(path: tuple[str, ...], value: Any, indent: str, described: bool) -> Iterator[str]:
    """A key with its value: blocks and lists of mappings over several lines, everything else on one."""
    key, comment = f"{indent}{path[-1]}:", _words(path) if described else ""
    if isinstance(value, Mapping) and len(path) == 1:
        yield _commented(key, comment)
        for name, part in value.items():
            yield from _entry((*path, name), part, "  ", described)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        yield _commented(key, comment)
        yield from (f"{indent}  - {_flow(each)}" for each in value)
    else:
        yield _commented(f"{key} {_flow(value)}", comment)


def _words(path: tuple[str, ...]) -> str:
    """What a key means."""
    if (note := NOTES.get(".".join(path))) is not None:
        return note
    sentence = description(path).partition(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:] if sentence[:2].istitle() else sentence


def _commented(line: str, comment: str) -> str:
    whole = f"{line} # {comment}"
    return whole if comment and len(whole) <= WIDTH else line


def _flow(value: Any) -> str:
    """A value in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
