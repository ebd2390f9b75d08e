"""What the names in a parameter file stand for: registered networks, datasets, methods and transforms, without torch.

A name that is not known makes its cells unavailable rather than the file wrong: a plan lists them all the same, a run
refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiment.config import MethodRef, NamedSettings, ParameterFile, Parameters
from experiment.datasets import DATASETS
from experiment.datasets.names import TRANSFORMS
from experiment.errors import ConfigError
from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.methods.settings import make_settings
from experiment.networks import NETWORKS
from experiment.registry import MethodEntry, is_import_path, resolve, suggestion
from experiment.run.keys import named, settings_without_defaults
from experiment.training.names import LOSSES, METRICS


@dataclass(frozen=True)
class MethodSpec:
    """A method of the file: its registered label or import path, its entry, its settings and the label on plots."""

    name: str
    label: str
    entry: MethodEntry
    settings: object


@dataclass(frozen=True)
class Names:
    """Everything named in one file.

    Attributes:
        network_key, dataset_key, test_key: how they enter the keys of results.
        input_shape: (channels, height, width) where the dataset's entry tells it.
        methods: in the file's order, Reference left out (it is always there).
        unavailable: label -> reason; the key "" stands for every cell.
        problems: the reasons as full lines with file and line.
    """

    network_key: dict[str, Any]
    dataset_key: dict[str, Any]
    test_key: dict[str, Any] | None
    input_shape: tuple[int, int, int] | None
    methods: tuple[MethodSpec, ...]
    unavailable: dict[str, str]
    problems: tuple[str, ...]


def resolve_names(file: ParameterFile, p: Parameters) -> Names:
    """Look up every name of one variant `p` of a file.

    Raises: ConfigError: a method's settings are wrong, or two methods carry one label (all such errors at once).
    """
    unknown: list[tuple[str, str, str]] = []  # label or "", reason, full line
    network_key, message = _lookup("network", p.network.name, p.network.settings, NETWORKS)
    _note(unknown, file, ("network", "name"), "", message)
    dataset_key, message = _dataset(p.network.dataset)
    _note(unknown, file, ("network", "dataset"), "", message)
    test_key = None
    if p.experiments.dataset_test is not None:
        test_key, message = _dataset(p.experiments.dataset_test)
        _note(unknown, file, ("experiments", "datasetTest"), "", message)
    for key, message in _training_names(p):
        _note(unknown, file, key, "", message)
    methods = _methods(file, unknown)
    entry = DATASETS.get(p.network.dataset.name)
    return Names(
        network_key, dataset_key, test_key, entry.input_shape if entry else None, methods,
        {label: reason for label, reason, _ in unknown}, tuple(line for _, _, line in unknown),
    )  # fmt: skip


def find_method(name: str) -> MethodEntry | str:
    """The entry behind a label, one of torchprune's class names or an import path; else why there is none."""
    if is_import_path(name):
        entry = resolve(name)
        return entry if isinstance(entry, MethodEntry) else f"'{name}' is not an experiment.registry.MethodEntry."
    label = TORCHPRUNE_NAMES.get(name, name)
    if label in METHODS:
        return METHODS[label]
    if label in TORCHPRUNE_NAMES.values():
        return f"method '{name}' is known but not available in this version."
    return f"unknown method '{name}'.{suggestion(name, [*METHODS, *TORCHPRUNE_NAMES])}"


def _note(
    unknown: list[tuple[str, str, str]],
    file: ParameterFile,
    key: tuple[str | int, ...],
    label: str,
    message: str | None,
) -> None:
    if message:
        dotted = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in key).lstrip(".")
        unknown.append((label, message, f"{file.where(*key)}: {dotted}: {message}"))


def _lookup(
    what: str, name: str, settings: Mapping[str, Any], registry: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    if is_import_path(name):
        try:
            return named(name, None, settings), None
        except ConfigError as error:
            return {"name": name}, str(error)
    if name not in registry:
        return {"name": name}, f"unknown {what} '{name}'.{suggestion(name, registry)}"
    return named(name, registry[name].version, settings), None


def _dataset(dataset: NamedSettings) -> tuple[dict[str, Any], str | None]:
    return _lookup("dataset", dataset.name, dataset.settings, DATASETS)


def _training_names(p: Parameters) -> Iterable[tuple[tuple[str | int, ...], str]]:
    for block, training in (("training", p.training), ("retraining", p.retraining)):
        for group, components in (
            ("transformsTrain", training.transforms_train),
            ("transformsTest", training.transforms_test),
            ("transformsFinal", training.transforms_final),
        ):
            for i, component in enumerate(components):
                if component.type not in TRANSFORMS:
                    yield (block, group, i, "type"), _unknown("transform", component.type, TRANSFORMS)
        if training.loss not in LOSSES:
            yield (block, "loss"), _unknown("loss", training.loss, LOSSES)
        if block == "training":
            for i, metric in enumerate(training.metrics_test):
                if metric.type not in METRICS:
                    yield (block, "metricsTest", i, "type"), _unknown("metric", metric.type, METRICS)
        if training.model_dump(mode="json") == p.training.model_dump(mode="json") or block == "retraining":
            return  # the retraining block repeats the training block: say it once


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"unknown {what} '{name}'.{suggestion(name, known)}"


def _methods(file: ParameterFile, unknown: list[tuple[str, str, str]]) -> tuple[MethodSpec, ...]:
    specs: list[MethodSpec] = []
    problems: list[str] = []
    for i, ref in enumerate(file.parameters.experiments.methods):
        where = f"{file.where('experiments', 'methods', i)}: experiments.methods[{i}]"
        try:
            spec, message = _method(ref)
        except ConfigError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
            continue
        if spec.entry.label == "Reference":
            continue  # torchprune's files may name it; it is always there
        if message:
            unknown.append((spec.label, message, f"{where}: {message}"))
        if any(spec.label == other.label for other in specs):
            problems.append(
                f"{where}: a second method with the label '{spec.label}'. Give one of them its own `label`."
            )
        specs.append(spec)
    if problems:
        raise ConfigError(problems)
    return tuple(specs)


def _method(ref: MethodRef) -> tuple[MethodSpec, str | None]:
    entry = find_method(ref.name)
    if isinstance(entry, str):
        label = ref.label or TORCHPRUNE_NAMES.get(ref.name, ref.name)
        return MethodSpec(ref.name, label, MethodEntry(label, object, "", "none"), None), entry
    settings = make_settings(entry, ref.settings)
    name = ref.name if is_import_path(ref.name) else entry.label
    return MethodSpec(name, ref.label or entry.label, entry, settings), None


def method_key(spec: MethodSpec) -> dict[str, Any]:
    """How a method enters the key of a cell: by what it is and does, not by its label on plots."""
    settings = {} if spec.settings is None else settings_without_defaults(spec.settings)
    return named(spec.name, spec.entry.version, settings)
