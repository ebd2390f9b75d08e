"""Which dataset, network, methods and training: five questions, each with what is known and a default."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.config import DatasetRef
from experiment.datasets import DATASETS
from experiment.errors import ConfigError, DataError, plural
from experiment.escaping import say
from experiment.networks import NETWORKS
from experiment.run.grid.hardware import Machine
from experiment.run.grid.methods import file_faults
from experiment.run.grid.names import Fault
from experiment.start import defaults
from experiment.start.duration import in_words, seconds_per_sample
from experiment.start.look_at_data import DataLook, look_at_data
from experiment.start.questions import Questions

NEEDED = {  # settings of datasets that have no default
    "ImageFolder": {"root": "Which folder has train/CLASS/*.jpg and test/CLASS/*.jpg?"},
    "SegmentationFolder": {"root": "Which folder has train/ and test/, each with images/ and masks/?"},
    "MultilabelFolder": {"root": "Which folder has train/ and test/, each with images and labels.csv?"},
    "TextFile": {"train": "Which file is the text for training?", "test": "Which file is the text for the test?"},
    "TextTable": {"train": "Which file is the table for training?", "test": "Which file is the table for the test?"},
    "Table": {"train": "Which file is the table?", "target": "Which column is to be predicted?"},
}


SIZES = {"type": "geometric", "numIntervals": 6, "maxVal": 0.8, "minVal": 0.1}


@dataclass(frozen=True)
class Interview:
    """What was answered and found out: the blocks of a file, the data, and the seconds of training per sample."""

    blocks: dict[str, Any]
    look: DataLook
    seconds: float | None


def interview(ask: Questions, folder: Path, machine: Machine) -> Interview:
    """Ask the questions in order.

    Args:
        folder: of datasets.
    Raises: ConfigError, DataError: an answer is missing, the data are, or the network does not fit them.
    """
    dataset, look = choose_dataset(ask, folder)
    samples = "" if look.num_train is None else f", {look.num_train:,} training samples"
    shape = f" of {' x '.join(map(str, look.shape))}" if isinstance(look.shape, tuple) else ""
    say(f"{dataset.name}: {look.task}, {plural(look.outputs, 'output')}{samples}{shape}")
    network = choose_network(ask, dataset, look, folder)
    name, settings, outputs = network["name"], network.get("settings", {}), network["outputSize"]
    seconds = seconds_per_sample(name, settings, outputs, look, machine)
    training = defaults.training_for(name, dataset, look)
    takes = "" if not seconds or not look.num_train else in_words(seconds * look.num_train)
    where = machine.device if machine.kind == "cuda" else "one core"
    fewest = 0 if "weights" in network else 1
    epochs = choose_epochs(ask, training, takes and f" One takes about {takes} on {where}.", fewest)
    methods = choose_methods(ask, look)
    blocks = {
        "network": network,
        **defaults.with_retraining(name, dataset, training, epochs),
        "experiments": {"methods": methods, "mode": "retrain", "numNets": 1, "spacing": [SIZES]},
    }
    return Interview(blocks, look, seconds)


def choose_dataset(ask: Questions, folder: Path) -> tuple[DatasetRef, DataLook]:
    """The dataset, and what is found out about it.

    Raises: ConfigError, DataError: an answer is missing, or the data are.
    """
    known = [*DATASETS, "your own as module:function"]
    name = ask.ask(
        ("network", "dataset", "name"), "Which dataset?", "Digits",
        lambda text: _refuse(file_faults({"network": {"dataset": text}}, folder)), known=known, required=True,
    )  # fmt: skip
    task = ask.given("network", "task")
    while True:
        given = ask.given("network", "dataset", "settings")
        settings = dict(given) if isinstance(given, Mapping) else {}
        for key, question in NEEDED.get(name, {}).items():
            settings[key] = ask.ask(("network", "dataset", "settings", key), question, None, _require)
        try:
            look = look_at_data(name, settings, folder, None if task is None else str(task))
        except (ConfigError, DataError) as error:
            if name not in NEEDED or not ask.interactive or isinstance(given, Mapping):
                raise
            say(f"  {error}")
        else:
            return DatasetRef(name=name, settings=settings), look


def choose_network(ask: Questions, dataset: DatasetRef, look: DataLook, folder: Path) -> dict[str, Any]:
    """The block `network`."""
    name = ask.ask(
        ("network", "name"), "Which network?", defaults.network_for(look),
        lambda text: _refuse(file_faults({"network": {"name": text}}, folder)),
        known=[*NETWORKS, "timm:NAME", "transformers:CLASS", "your own as module:function"], required=True,
    )  # fmt: skip
    question = "Which file has trained weights to start from? (empty: train from random weights)"
    weights = ask.ask(
        ("network", "weights"), question, "",
        lambda text: _refuse(file_faults({"network": {"weights": text or None}}, folder)),
    )  # fmt: skip
    same = defaults.packaged(name, dataset)
    own = ask.given("network", "settings")
    settings = same[1].network.settings if same is not None else defaults.SETTINGS.get(name, {})
    values = {
        "name": name,
        "settings": own if isinstance(own, Mapping) else settings,
        "dataset": {"name": dataset.name, **({"settings": dataset.settings} if dataset.settings else {})},
        "outputSize": ask.given("network", "outputSize") or look.outputs,
        "task": look.task if dataset.name not in DATASETS and look.task != "classification" else None,
        "weights": weights,
    }
    return {key: value for key, value in values.items() if value}


def choose_methods(ask: Questions, look: DataLook) -> list[str]:
    """The methods to compare."""
    text = ask.ask(
        ("experiments", "methods"), "Which methods? Names or families, separated by commas.",
        ", ".join(defaults.methods_for(look)),
        lambda text: _refuse(file_faults({"experiments": {"methods": _methods(text)}}, None)),
        known=[*(f"{name} ({', '.join(each)})" for name, each in defaults.FAMILIES.items()), "see docs/methods"],
    )  # fmt: skip
    return _methods(text)


def choose_epochs(ask: Questions, training: Mapping[str, Any], takes: str, fewest: int) -> int:
    """Epochs of training; `takes` says how long one is. Random weights need at least one."""

    def check(text: str) -> None:
        if not text.isdecimal() or int(text) < fewest:
            raise ConfigError(f"expected the number of epochs, at least {fewest}. Got '{text}'.")

    question = f"How many epochs of training?{takes} Compressed networks are retrained for a third of them, at most 10."
    return int(ask.ask(("training", "numEpochs"), question, str(training["numEpochs"]), check))


def _methods(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return list(dict.fromkeys(each for name in names for each in defaults.FAMILIES.get(name, [name])))


def _require(text: str) -> None:
    if not text:
        raise ConfigError("expected a name.")


def _refuse(faults: Iterable[Fault]) -> None:
    """Raises: ConfigError: there are faults."""
    if problems := [fault.text for fault in faults]:
        raise ConfigError(problems)
