"""The compression methods of a parameter file, each looked up and validated once. Without torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiment.config.schema.budget import Budget
from experiment.config.value_tree import KeyPath
from experiment.errors import ConfigError
from experiment.escaping import FORMULA, look
from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.methods.configure import MethodSpec, find_method, spec_or_faults
from experiment.methods.settings import ComposeSettings
from experiment.registry import NAMES_CODE, MethodEntry, is_import_path
from experiment.run.grid.names import Fault, mapping_at, name_faults
from experiment.user_code import source_hash

REFERENCE = "Reference"  # the label of the uncompressed network


@dataclass(frozen=True)
class FileMethods:
    """The methods of a file.

    Attributes:
        specs: one per entry of `experiments.methods`; None for an invalid entry. Unknown methods have a placeholder.
        faults: all errors in them.
    """

    specs: tuple[MethodSpec | None, ...]
    faults: tuple[Fault, ...]

    @property
    def compared(self) -> tuple[MethodSpec, ...]:
        """All methods except the reference network, which every experiment has."""
        return tuple(spec for spec in self.specs if spec is not None and spec.entry.label != REFERENCE)


def look_up_methods(methods: object) -> FileMethods:
    """The methods of the plain value of `experiments.methods`, which may be invalid."""
    specs: list[MethodSpec | None] = []
    faults: list[Fault] = []
    labels: dict[str, str] = {}  # by appearance
    for i, value in enumerate(methods if isinstance(methods, list) else []):
        ref = {"name": value} if isinstance(value, str) else value
        if not isinstance(ref, Mapping) or not isinstance(ref.get("name"), str):
            specs.append(None)
            continue
        key = ("experiments", "methods", i)
        spec, label, own = _look_up(key, ref)
        specs.append(spec)
        faults += own
        if label and (text := _label_fault(label, spec, labels.get(look(label)))):
            faults.append(Fault(key, text, fatal=True))
        labels[look(label)] = label
    return FileMethods(tuple(specs), tuple(faults))


def _look_up(key: KeyPath, ref: Mapping[str, Any]) -> tuple[MethodSpec | None, str, list[Fault]]:
    """The method of one entry, its label (empty if unknown), and its errors."""
    name, given = ref["name"], ref.get("label")
    try:
        entry = find_method(name)
    except ConfigError as error:
        return None, "", [Fault(key, problem, fatal=True) for problem in error.problems]
    if isinstance(entry, str) and is_import_path(name):
        return None, "", [Fault(key, entry, fatal=True)]
    if isinstance(entry, str):
        label = str(given or TORCHPRUNE_NAMES.get(name, name))
        return MethodSpec(name, label, MethodEntry(label, object, "", "none"), None), label, [Fault(key, entry, label)]
    settings = mapping_at(ref, "settings")
    made = spec_or_faults(entry, settings, name)
    wrong = made if isinstance(made, list) else []
    faults = [Fault((*key, "settings", *path), text, fatal=True) for path, text in wrong]
    faults += _code_faults((*key, "settings"), entry, settings)
    recalibrate = ref.get("recalibrate") is True
    if recalibrate and (text := recalibration_fault(entry)):
        faults.append(Fault((*key, "recalibrate"), text, fatal=True))
    if isinstance(made, list):
        return None, str(given or ("" if entry.label == REFERENCE else entry.label)), faults
    label = str(given or made.label)
    return replace(made, label=label, recalibrate=recalibrate), label, faults


def recalibration_fault(entry: MethodEntry) -> str | None:
    """Why re-estimating BatchNorm statistics after a method has no effect, if it has none."""
    if entry.target != METHODS["Fake"].target:
        return None
    return f"recalibrate has no effect: {entry.label} does not change the network. Remove it."


def spacing_faults(experiments: Mapping[str, Any], specs: Sequence[MethodSpec | None]) -> Iterator[Fault]:
    """Keep ratios are required unless they are searched, or all methods have a fixed size."""
    searched = experiments.get("search") is not None
    if experiments.get("spacing") not in (None, []) or experiments.get("mode") in (None, "train"):
        return
    if _says_enough(experiments.get("budget")):
        return
    compared = [spec for spec in specs if spec is None or spec.entry.label != REFERENCE]
    if searched and all(spec is not None and spec.fixed_size for spec in compared):
        text = "has no effect: no method has a size that could be searched. Remove it."
        yield Fault(("experiments", "search"), text, fatal=True)
    elif not searched and (not compared or any(spec is not None and not spec.fixed_size for spec in compared)):
        budget = experiments.get("budget")
        plain = budget is None or Budget.model_validate(budget).counted
        shares = "" if plain else " The budget gives no share below 1 and no amount."
        yield Fault(("experiments", "spacing"), f"is required and missing: the keep ratios.{shares}", fatal=True)


def _says_enough(budget: object) -> bool:
    """Whether a budget needs no keep ratios; a wrong one is a fault of its own."""
    try:
        return budget is not None and Budget.model_validate(budget).complete
    except ValidationError:
        return True


def _label_fault(label: str, spec: MethodSpec | None, other: str | None) -> str | None:
    """Why a label cannot be used.

    Args:
        other: an earlier label that looks the same.
    """
    if "\n" in label or "\t" in label or not look(label):
        return f"the label {label!r} must be a word or a few, on one line."
    if label.startswith(tuple(FORMULA)):
        return f"the label '{label}' starts with {label[0]}, like a spreadsheet formula. Start it with a letter."
    if look(label) == REFERENCE and (spec is None or spec.entry.label != REFERENCE):
        return f"the label '{label}' is reserved for the uncompressed network. Choose another `label`."
    if other is not None:
        alike = "" if other == label else f", which looks like '{other}' in a table"
        return f"a second method with the label '{label}'{alike}. Give one of them another `label`."
    return None


def _code_faults(key: KeyPath, entry: MethodEntry, settings: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings that must be import paths and are not, including those of the schemes of a composition."""
    schemes = settings.get("schemes") if entry.settings is ComposeSettings else None
    for i, scheme in enumerate(schemes if isinstance(schemes, list) else []):
        name = scheme.get("name") if isinstance(scheme, Mapping) else None
        if name in METHODS:
            yield from _code_faults((*key, "schemes", i, "settings"), METHODS[name], mapping_at(scheme, "settings"))
    for f in fields(entry.settings):
        value = settings.get(f.name)
        if f.metadata.get(NAMES_CODE) and isinstance(value, str):
            try:
                if not is_import_path(value):
                    raise ConfigError(f"'{value}' is not an import path. Expected package.module:name.")
                source_hash(value.partition(":")[0])
            except ConfigError as error:
                yield Fault((*key, f.name), str(error), fatal=True)


def file_faults(values: Mapping[str, Any], datasets: Path | None) -> Iterator[Fault]:
    """All unknown names and invalid methods in the plain values of a file, which may be invalid otherwise."""
    experiments = mapping_at(values, "experiments")
    methods = look_up_methods(experiments.get("methods"))
    yield from name_faults(values, datasets)
    yield from methods.faults
    yield from spacing_faults(experiments, methods.specs)
