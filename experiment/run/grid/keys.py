"""Keys of results: content hashes of everything that determines an outcome.

Settings that only affect display or storage (labels, test batch sizes, paths) are omitted, and so are values equal to
their defaults: a new setting does not change existing keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from experiment.config import DatasetRef, Network, Parameters, Search, Training
from experiment.config.modes import base_mode, epochs_of, retraining, rewinding
from experiment.datasets import find_dataset
from experiment.datasets.corruptions import VERSION as CORRUPTIONS_VERSION
from experiment.datasets.file_stamp import CONSTANT
from experiment.errors import ConfigError
from experiment.methods.configure import MethodSpec
from experiment.networks import NETWORKS
from experiment.registry import DatasetEntry, NetworkEntry, is_import_path
from experiment.run.grid.data_stamps import Stamps
from experiment.run.grid.hardware import Machine, resolved_channels_last, resolved_precision
from experiment.run.grid.task_name import default_loss, task_key
from experiment.run.grid.weights_file import GivenWeights, folder_hash
from experiment.user_code import code_in, forget_changed, source_hash

FORMAT_VERSION = 1  # of every file that this package writes
SEARCH_VERSION = 1  # raise it when a search tries or accepts other networks
RECALIBRATION_VERSION = 1  # raise it when the outcome of experiment.layers.recalibrate_batchnorm changes
MADE = 10  # leading digits of a cell's key that identify its network; the others identify the test data

UNUSED_BY_LC = {"num_epochs", "start_epoch", "lr_schedulers", "early_stop_epoch"}


def digest(payload: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON of `payload`."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DataKeys:
    """The parts of keys for the training data and for the test data; the latter is None if it is constant."""

    training: dict[str, Any]
    test: dict[str, Any] | None

    @classmethod
    def of(cls, p: Parameters, stamps: Stamps | None) -> DataKeys:
        dataset, others = p.network.dataset, p.experiments.dataset_test

        def stamped(part: DatasetRef, train: bool) -> dict[str, str]:
            stamp = CONSTANT if stamps is None else stamps.of(part, train, p.network.output_size)
            return {} if stamp == CONSTANT else {"data": stamp}

        training = _dataset_key(dataset) | stamped(dataset, True)
        tests = [_dataset_key(other) | stamped(other, False) for other in others] or [stamped(dataset, False)]
        return cls(training, {"sets": tests} if len(tests) > 1 else tests[0] or None)


def reference_payload(p: Parameters, machine: Machine, data: DataKeys, weights: GivenWeights | None) -> dict[str, Any]:
    """What the keys of all reference networks of a variant have in common: all but the number of the network."""
    content = {} if p.network.weights is None else {"weights": weights and weights.content}
    if (folder := folder_hash(p.network.settings)) is not None:
        content["folder"] = folder
    dataset = find_dataset(p.network.dataset.name)
    shape = {"output_size": p.network.output_size, "input_shape": dataset.input_shape if dataset else None}
    payload = {
        "format": FORMAT_VERSION,
        "network": _registered(p.network, NETWORKS.get(p.network.name)) | content | shape,
        "dataset": data.training,
        "training": training_key(p, machine),
        **task_key(p),
        "seed": p.seed,
        "device": machine.kind,
        "threads": p.threads,
    }
    return payload | ({"processes": machine.processes} if machine.processes > 1 else {})


def cell_payload(p: Parameters, method: MethodSpec, machine: Machine) -> dict[str, Any]:
    """What the cells of one method have in common: all but reference network, repetition and size."""
    return {
        "format": FORMAT_VERSION,
        "method": method_key(method),
        "budget": p.experiments.budget.key(),
        **mode_key(p),
        **search_key(None if method.fixed_size else p.experiments.search),
        "coresets": p.coresets.model_dump(mode="json", exclude_defaults=True),
        "test": None,  # see cell_key
        "retraining": retraining_key(p, machine, planned_epochs(p)),
    }


def cell_key(made: str, test: Mapping[str, Any] | None) -> str:
    """The key of a cell. Cells with the same network and different test data share the first digits.

    Args:
        made: the digest of everything that determines the network.
        test: the test data, unless they are constant.
    """
    return made if test is None else made[:MADE] + digest([made, test])[MADE:]


def named(name: str, version: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a key for a network, dataset or method: with its version, or with the hash of the user's source."""
    entry: dict[str, Any] = {"name": name, "settings": dict(settings)}
    if is_import_path(name):
        entry["source"] = source_hash(name.partition(":")[0])
    else:
        entry["version"] = version
    sources = {module: source_hash(module) for module in code_in(entry["settings"])}
    return entry | ({"sources": sources} if sources else {})


def _registered(ref: DatasetRef | Network, entry: NetworkEntry | DatasetEntry | None) -> dict[str, Any]:
    """The part of a key for a network or dataset; only its name if it is unknown, which is a fault of the file."""
    if is_import_path(ref.name):
        try:
            return named(ref.name, None, ref.settings)
        except ConfigError:
            return {"name": ref.name}
    return {"name": ref.name} if entry is None else named(ref.name, entry.version, ref.settings)


def _dataset_key(ref: DatasetRef) -> dict[str, Any]:
    key = _registered(ref, find_dataset(ref.name))
    corruption = {"name": ref.corruption, "severity": ref.severity, "version": CORRUPTIONS_VERSION}
    key |= {"corruption": corruption} if ref.corruption is not None else {}
    return key | ({} if ref.max_samples is None else {"max_samples": ref.max_samples})


def method_key(spec: MethodSpec) -> dict[str, Any]:
    """The part of a key for a method: its algorithm and settings, without its label in plots."""
    settings = {} if spec.settings is None else settings_without_defaults(spec.settings)
    if spec.schemes:
        settings["schemes"] = [method_key(scheme) for scheme in spec.schemes]
    key = named(spec.name, spec.entry.version, settings)
    if is_import_path(spec.name):  # the algorithm may be in another module than the entry
        algorithm = spec.entry.target.partition(":")[0]
        forget_changed(algorithm)
        key |= {"version": spec.entry.version, "algorithm": source_hash(algorithm)}
    if spec.recalibrate:
        key["recalibrate"] = RECALIBRATION_VERSION
    return key


def settings_without_defaults(settings: object) -> dict[str, Any]:
    """The fields of a settings dataclass that differ from their defaults, as plain values."""
    found = {}
    for f in fields(settings):  # type: ignore[arg-type]
        value = vars(settings)[f.name]
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if value != default:
            found[f.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return settings_without_defaults(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def training_key(p: Parameters, machine: Machine) -> dict[str, Any]:
    """The part of a reference network's key for its training."""
    return _training_key(p, p.training, machine, {"start_epoch"}) | {"num_epochs": p.training.num_epochs}


def retraining_key(p: Parameters, machine: Machine, epochs: int) -> dict[str, Any]:
    """The part of a cell's key for its retraining or, in mode lc, its learning."""
    if epochs == 0:
        return {"epochs": 0}
    if p.experiments.mode == "lc":
        how = p.lc.model_dump(mode="json", exclude_defaults=True)
        return _training_key(p, retraining(p), machine, UNUSED_BY_LC) | {"lc": how}
    steps = {"gradual": p.gradual.model_dump(mode="json")} if p.experiments.mode == "gradual" else {}
    return _training_key(p, retraining(p), machine, set()) | {"epochs": epochs, **steps}


def _training_key(p: Parameters, training: Training, machine: Machine, unused: set[str]) -> dict[str, Any]:
    resolved = {"enable_amp", "precision", "channels_last"}
    left_out = unused | resolved | {"test_batch_size"}
    key = training.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
    if training.loss == default_loss(p):
        key.pop("loss", None)
    key["precision"] = resolved_precision(training, machine)
    return key | ({"channels_last": True} if resolved_channels_last(training, machine) else {})


def planned_epochs(p: Parameters) -> int:
    """Epochs of retraining per cell, as far as they are known without reading the data."""
    dataset = p.network.dataset
    entry = find_dataset(dataset.name)
    if entry is None or entry.num_train is None:
        return epochs_of(p)
    return epochs_of(p, min(entry.num_train, dataset.max_samples or entry.num_train) * dataset.copies)


def mode_key(p: Parameters) -> dict[str, str]:
    """The part of a cell's key for its mode; settings with the same meaning give the same key."""
    which, base = rewinding(p.experiments), base_mode(p.experiments)
    if which == "random":
        return {"mode": base, "rewind": which}
    return {"mode": f"{base}-rewind" if which == "weights" else base}


def search_key(search: Search | None) -> dict[str, Any]:
    """The part of a cell's key for the search of its keep ratio."""
    if search is None:
        return {}
    return {"search": {"version": SEARCH_VERSION} | search.model_dump(mode="json", exclude_defaults=True)}
