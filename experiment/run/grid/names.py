"""Unknown names in a parameter file: networks, datasets, weights, hooks and parts of a training. Without torch.

A plan lists the cells that need an unknown name as unavailable; a run refuses the file.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.config import ParameterFile, Variant
from experiment.config.schema.training import LOSS_OF_TASK
from experiment.config.value_tree import KeyPath, Place, Problem
from experiment.datasets import DATASETS, find_dataset
from experiment.datasets.corruptions import CORRUPTIONS
from experiment.datasets.torchprune_names import known_names
from experiment.datasets.transform_names import TRANSFORMS
from experiment.errors import ConfigError, StoreError
from experiment.hooks import HOOKS
from experiment.networks import NETWORKS
from experiment.registry import is_import_path, suggestion
from experiment.run.grid.weights_file import datasets_folder, missing_text
from experiment.tasks import TASKS
from experiment.training.allowed_names import LOSSES, OPTIMIZERS, SCHEDULERS
from experiment.user_code import source_hash


@dataclass(frozen=True)
class Fault:
    """An unknown name, or an invalid method.

    Attributes:
        key: the key to blame.
        label: the method whose cells cannot run; empty for all cells.
        fatal: the file is invalid, so that no plan can be made of it.
    """

    key: KeyPath
    text: str
    label: str = ""
    fatal: bool = False

    def line(self, file: ParameterFile, variant: Variant | None = None) -> str:
        """The error with file and line: those of the customization that sets the key, if there is one."""
        return str(Problem(Place(file.where(*self.key, variant=variant)), self.key, self.text))


def name_faults(values: Mapping[str, Any], datasets: Path | None = None) -> Iterator[Fault]:
    """All unknown names in the plain values of a file, which may be invalid otherwise.

    Args:
        datasets: the folder of datasets that the command line sets.
    """
    network, experiments = mapping_at(values, "network"), mapping_at(values, "experiments")
    yield from _unknown(("network", "name"), network.get("name"), "network", NETWORKS)
    yield from _unknown(("network", "task"), network.get("task"), "task", TASKS)
    tests = experiments.get("datasetTest")
    tests = tests if isinstance(tests, list) else [tests]
    places: list[tuple[KeyPath, object]] = [(("network", "dataset"), network.get("dataset"))]
    for i, test in enumerate(tests):
        places.append((("experiments", "datasetTest", *([i] if len(tests) > 1 else [])), test))
    for key, value in places:
        name = value.get("name") if isinstance(value, Mapping) else value
        if not isinstance(name, str) or find_dataset(name) is None:
            yield from _unknown(key, name, "dataset", [*DATASETS, *known_names()])
        if isinstance(value, Mapping):
            yield from _unknown((*key, "corruption"), value.get("corruption"), "corruption", CORRUPTIONS)
    hooks = experiments.get("hooks")
    for i, hook in enumerate(hooks if isinstance(hooks, list) else []):
        name = hook.get("name") if isinstance(hook, Mapping) else hook
        yield from _unknown(("experiments", "hooks", i), name, "hook", HOOKS)
    given, folder = network.get("weights"), datasets_folder(values, datasets)
    try:
        if isinstance(given, str) and (text := missing_text(given, folder)):
            yield Fault(("network", "weights"), text)
    except StoreError as error:
        yield Fault(("network", "weights"), str(error), fatal=True)
    texts = set()
    for block in ("training", "retraining"):  # retraining inherits the names of training
        for fault in _training_faults(block, mapping_at(values, block)):
            if fault.text not in texts:
                texts.add(fault.text)
                yield fault


def mapping_at(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key; an empty one if there is none."""
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _training_faults(block: str, training: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _unknown((block, "optimizer"), training.get("optimizer"), "optimizer", OPTIMIZERS)
    yield from _unknown((block, "loss"), training.get("loss"), "loss", (*LOSSES, LOSS_OF_TASK))
    for group, what, known in (
        ("lrSchedulers", "scheduler", SCHEDULERS),
        ("transformsTrain", "transform", TRANSFORMS),
        ("transformsTest", "transform", TRANSFORMS),
        ("transformsFinal", "transform", TRANSFORMS),
    ):
        components = training.get(group)
        for i, component in enumerate(components if isinstance(components, list) else []):
            name = component.get("type") if isinstance(component, Mapping) else None
            yield from _unknown((block, group, i, "type"), name, what, known)


def _unknown(key: KeyPath, name: object, what: str, known: Iterable[str]) -> Iterator[Fault]:
    """A fault if `name` is neither known nor, for networks, datasets, tasks and hooks, an import path that exists."""
    if not isinstance(name, str) or name in known:
        return
    if is_import_path(name) and what in ("network", "dataset", "task", "hook"):
        try:
            source_hash(name.partition(":")[0])
        except ConfigError as error:
            yield Fault(key, str(error))
        return
    own = "; name code of your own as module:function or module:class" if what == "hook" else ""
    near = suggestion(name, known) or (f" Known are {', '.join(known)}{own}." if what in ("corruption", "hook") else "")
    yield Fault(key, f"unknown {what} '{name}'.{near}")
