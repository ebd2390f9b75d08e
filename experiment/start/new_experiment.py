"""`--new`: from a few answers to a parameter file and a small twin, both of which load, and what to do with them."""

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiment.config import load
from experiment.config.overrides import apply_overrides
from experiment.config.value_tree import Node, Place, Problem, merge, plain
from experiment.config.yaml_file import parse
from experiment.errors import ConfigError, plural
from experiment.escaping import say
from experiment.files import safe_name, write_whole
from experiment.run.grid.hardware import Machine
from experiment.run.grid.methods import file_faults
from experiment.run.grid.plan import ExperimentPlan, plan_experiment
from experiment.run.grid.weights_file import DATASETS_FOLDER
from experiment.run.machine import usable_cores
from experiment.start.duration import epochs_of, in_words
from experiment.start.interview import interview
from experiment.start.questions import Questions
from experiment.start.write_files import file_text

COMMAND = "python -m experiment.main"
SMOKE: dict[str, Any] = {  # what the twin changes
    "training": {"numEpochs": 1},
    "retraining": {"numEpochs": 1, "startEpoch": 0},
    "experiments": {"numNets": 1, "spacing": [{"type": "manual", "values": [0.5, 0.2]}]},
}
SMOKE_SECONDS, FEWEST_SAMPLES = 20.0, 200  # of the trainings of the twin


@dataclass(frozen=True)
class Call:
    """The command line: the path of the file if it is given, `--set`, `--data`, and the machine."""

    path: str | None
    overrides: Sequence[str]
    data: Path | None
    machine: Machine


def write_new(call: Call) -> None:
    """Ask, find out, write two files, and say what to do next.

    Raises: ConfigError, DataError: an answer is missing or wrong, or a file exists. Nothing is written then.
    """
    problems: list[Problem] = []
    given, _ = apply_overrides(Node({}, Place("--set")), call.overrides, problems)
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    if call.path is not None:
        _require_free(Path(call.path))
    found = interview(Questions(given, sys.stdin.isatty()), call.data or DATASETS_FOLDER, call.machine)
    values = _merged(found.blocks, given)
    if call.data is not None:
        values.setdefault("directories", {"training_data": str(call.data)})
    path = Path(call.path or _default_name(values))
    _require_free(path)
    main, twin = _plans(path, values, SMOKE, call)
    smoke, takes = SMOKE, "not estimated, since the data are not here"
    if found.seconds is not None and found.look.num_train is not None:
        epoch = found.seconds * found.look.num_train
        fitting = max(FEWEST_SAMPLES, int(SMOKE_SECONDS / found.seconds / epochs_of(twin)))
        if fitting < found.look.num_train:
            smoke = {"network": {"dataset": {"maxSamples": fitting}}} | SMOKE
        cores = 1 if call.machine.kind == "cuda" else usable_cores()
        where = call.machine.device if call.machine.kind == "cuda" else plural(cores, "CPU core")
        takes = f"about {in_words(epoch * epochs_of(main) / cores)} on {where} (a rough estimate)"
    _plans(path, values, smoke, call)  # finds mistakes before anything is written
    for place, text in zip((path, _twin(path)), _texts(path, values, smoke, takes), strict=True):
        write_whole(place, text)
    _say_what_next(path, takes)


def _default_name(values: Mapping[str, Any]) -> str:
    network, dataset = values["network"]["name"], values["network"]["dataset"]["name"]
    return "_".join(safe_name(name.rpartition(":")[2]) for name in (network, dataset)) + ".yaml"


def _twin(path: Path) -> Path:
    return path.with_name(f"{path.stem}_smoke{path.suffix}")


def _require_free(path: Path) -> None:
    """Raises: ConfigError: a file would be overwritten, or is no YAML file."""
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--new: expected the path of a .yaml file to write. Got {path}.")
    for place in (path, _twin(path)):
        if place.exists():
            raise ConfigError(f"--new: {place} exists, and is not overwritten. Choose another name.")


def _merged(answers: Mapping[str, Any], given: Node) -> dict[str, Any]:
    """The answers with everything else that `--set` gives; a dataset in its long form, which the twin can change."""
    base = parse(yaml.safe_dump(dict(answers), sort_keys=False), "", [])
    values: dict[str, Any] = plain(given if base is None else merge(base, given))
    if isinstance(dataset := values["network"]["dataset"], str):
        values["network"]["dataset"] = {"name": dataset}
    return values


def _texts(path: Path, values: Mapping[str, Any], smoke: Mapping[str, Any], takes: str) -> tuple[str, str]:
    """The content of both files."""
    network, twin = values["network"], _twin(path)
    methods = [m if isinstance(m, str) else m["name"] for m in values["experiments"]["methods"]]
    head = [
        f"{COMMAND} {shlex.quote(str(path))}", "",
        f"{network['name']} on {network['dataset']['name']}, compressed by {', '.join(methods)} and retrained.",
        f"Expect: {takes}. Try {twin.name} first.",
        "What to change next: methods and spacing; numNets: 3 for error bars; numEpochs and startEpoch, to trade "
        "time for accuracy. docs/parameter-file.md describes every key.",
    ]  # fmt: skip
    less = "one epoch, two sizes and few samples" if "network" in smoke else "one epoch and two sizes"
    small = [
        f"{COMMAND} {shlex.quote(str(twin))}", "",
        f"{path.name} with {less}, to see that everything works. Its figures mean nothing.",
        "Expect: about a minute.",
    ]  # fmt: skip
    return file_text(head, values, described=True), file_text(small, {"file": path.name, **smoke}, described=False)


def _plans(
    path: Path, values: Mapping[str, Any], smoke: Mapping[str, Any], call: Call
) -> tuple[ExperimentPlan, ExperimentPlan]:
    """The plans of both files, written to a temporary folder.

    Raises: ConfigError: they do not load.
    """
    problems: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / place.name for place in (path, _twin(path))]
        plans = []
        for place, text in zip(places, _texts(path, values, smoke, ""), strict=True):
            place.write_text(text, encoding="utf-8")
            try:
                file = load(place, also=lambda found: ((f.key, f.text) for f in file_faults(found, call.data)))
                plans.append(plan_experiment(file, call.machine, datasets=call.data))
                problems |= dict.fromkeys(plans[-1].problems)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
            if problems:  # without the place in a file that is not there
                raise ConfigError([f"--new: {problem.partition(': ')[2]}" for problem in problems])
    return plans[0], plans[1]


def _say_what_next(path: Path, takes: str) -> None:
    main, twin = (f"{COMMAND} {shlex.quote(str(each))}" for each in (path, _twin(path)))
    say(f"wrote {path} and {_twin(path)}")
    say(f"  try it  {twin}    # about a minute")
    say(f"  look    {main} --plan")
    say(f"  run     {main}    # {takes}")
