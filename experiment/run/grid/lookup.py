"""What the names in a parameter file stand for: registered networks, datasets, methods and transforms, without torch.

A name that is not known makes its cells unavailable rather than the file wrong: a plan lists them all the same, a run
refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from experiment.config import MethodRef, NamedSettings, Network, ParameterFile, Variant
from experiment.datasets import DATASETS
from experiment.datasets.file_stamp import CONSTANT
from experiment.datasets.transform_names import TRANSFORMS
from experiment.errors import ConfigError, described
from experiment.escaping import FORMULA, is_number, look
from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.methods.configure import MethodSpec, configure, find_method, spec_or_faults
from experiment.methods.settings import ComposeSettings
from experiment.networks import NETWORKS
from experiment.registry import NAMES_CODE, MethodEntry, is_import_path, no_such_argument, suggestion
from experiment.run.grid.data_stamps import Stamps
from experiment.run.grid.keys import named, settings_without_defaults
from experiment.run.grid.torch_signatures import signature as signature_of
from experiment.run.grid.weights_file import GivenWeights, datasets_folder, find_given, missing_text
from experiment.training.names import LOSSES, METRICS, OPTIMIZERS, SCHEDULERS
from experiment.user_code import code_in, forget_changed, source_hash

REFERENCE = "Reference"  # the label of the uncompressed network

KeyPath = tuple[str | int, ...]

RECALIBRATION_VERSION = 1  # of experiment.layers.recalibrate_batchnorm: rises when its outcome changes


@dataclass(frozen=True)
class Fault:
    """A name, or the settings of a method, that this program does not know.

    Attributes:
        key: where it stands in the file.
        label: whose cells cannot run for it, "" for all.
        fatal: whether the file is wrong; else a plan can still be made of it.
    """

    key: KeyPath
    text: str
    label: str = ""
    fatal: bool = False

    def line(self, file: ParameterFile, variant: Variant | None = None) -> str:
        """The full error, with file and line: those of the customization, where that sets the key."""
        dotted = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.key).lstrip(".")
        return f"{file.where(*self.key, variant=variant)}: {dotted}: {self.text}"


@dataclass(frozen=True)
class Names:
    """Everything named in one variant of a file.

    Attributes:
        network_key, dataset_key, test_key: how they enter the keys of results.
        input_shape: (channels, height, width) where the dataset's entry tells it.
        weights: the file that the network starts from, if one is given and there.
        methods: in the file's order, Reference left out (it is always there).
        faults: the names that are not known.
    """

    network_key: dict[str, Any]
    dataset_key: dict[str, Any]
    test_key: dict[str, Any] | None
    input_shape: tuple[int, int, int] | None
    weights: GivenWeights | None
    methods: tuple[MethodSpec, ...]
    faults: tuple[Fault, ...]


def resolve_names(
    file: ParameterFile, variant: Variant, datasets: Path | None = None, stamps: Stamps | None = None
) -> Names:
    """Look up every name of one variant of a file.

    Args:
        datasets: where the command line says that they lie.
        stamps: of their content; None to leave it out of the keys.
    Raises: ConfigError: a method's settings are wrong, or two methods carry one label; all that is wrong comes with it.
    """
    p = variant.parameters
    values = p.model_dump(mode="json", by_alias=True)
    for module in code_in(values):
        forget_changed(module)
    faults = tuple(name_faults(values, datasets))
    if any(fault.fatal for fault in faults):
        raise ConfigError([fault.line(file, variant) for fault in faults])
    network, dataset, test = p.network, p.network.dataset, p.experiments.dataset_test
    entry = DATASETS.get(dataset.name)
    weights = None if network.weights is None else find_given(network.weights, datasets_folder(values, datasets))
    content = {} if network.weights is None else {"weights": weights and weights.content}
    return Names(
        network_key=_key(network.name, network.settings, NETWORKS) | content,
        dataset_key=_key(dataset.name, dataset.settings, DATASETS) | _stamped(stamps, dataset, True, network),
        test_key=(
            ({} if test is None else _key(test.name, test.settings, DATASETS))
            | _stamped(stamps, test or dataset, False, network)
        )
        or None,
        input_shape=entry.input_shape if entry else None,
        weights=weights,
        methods=tuple(spec for ref in p.experiments.methods if (spec := _spec(ref)).entry.label != "Reference"),
        faults=faults,
    )


def name_faults(values: Mapping[str, Any], datasets: Path | None = None) -> Iterator[Fault]:
    """All names in the plain values of a file that are not known, whatever else is wrong with it."""
    network = _mapping(values, "network")
    yield from _unknown(("network", "name"), network.get("name"), "network", NETWORKS)
    yield from _unknown(("network", "dataset"), _name(network.get("dataset")), "dataset", DATASETS)
    experiments = _mapping(values, "experiments")
    yield from _unknown(("experiments", "datasetTest"), _name(experiments.get("datasetTest")), "dataset", DATASETS)
    given, folder = network.get("weights"), datasets_folder(values, datasets)
    if isinstance(given, str) and find_given(given, folder) is None:
        yield Fault(("network", "weights"), missing_text(given, folder))
    told = set()
    for block in ("training", "retraining"):  # which repeats what the training block says: once is enough
        for fault in _training_faults(block, _mapping(values, block), network.get("outputSize")):
            if fault.text not in told:
                told.add(fault.text)
                yield fault
    methods = experiments.get("methods")
    yield from _method_faults(methods if isinstance(methods, list) else [])
    yield from _grid_faults(experiments, methods if isinstance(methods, list) else [])


def recalibration_fault(entry: MethodEntry) -> str | None:
    """Why there is no use in re-estimating BatchNorm statistics after a method, if there is none."""
    if entry.target != METHODS["Fake"].target:
        return None
    return f"recalibrate has no effect: {entry.label} leaves the network as it is. Leave it out."


def method_key(spec: MethodSpec) -> dict[str, Any]:
    """How a method enters the key of a cell: by what it is and does, not by its label on plots."""
    settings = {} if spec.settings is None else settings_without_defaults(spec.settings)
    if spec.schemes:
        settings["schemes"] = [method_key(scheme) for scheme in spec.schemes]
    key = named(spec.name, spec.entry.version, settings)
    if is_import_path(spec.name):  # the algorithm may lie in another module than the entry
        algorithm = spec.entry.target.partition(":")[0]
        forget_changed(algorithm)
        key |= {"version": spec.entry.version, "algorithm": source_hash(algorithm)}
    if spec.recalibrate:
        key["recalibrate"] = RECALIBRATION_VERSION
    return key


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _name(value: object) -> object:
    return value.get("name") if isinstance(value, Mapping) else value


def _unknown(key: KeyPath, name: object, what: str, known: Iterable[str]) -> Iterator[Fault]:
    """A fault if `name` is text and neither known nor, for networks and datasets, an import path that exists."""
    if not isinstance(name, str) or name in known:
        return
    if is_import_path(name) and what in ("network", "dataset"):
        try:
            source_hash(name.partition(":")[0])
        except ConfigError as error:
            yield Fault(key, str(error))
        return
    yield Fault(key, f"unknown {what} '{name}'.{suggestion(name, known)}")


def _training_faults(block: str, training: Mapping[str, Any], outputs: object) -> Iterator[Fault]:
    for fault in _unknown((block, "optimizer"), training.get("optimizer"), "optimizer", OPTIMIZERS):
        yield replace(fault, fatal=True)  # nobody's file names an optimizer that does not exist
    yield from _unknown((block, "loss"), training.get("loss"), "loss", LOSSES)
    optimizer, loss = training.get("optimizer"), training.get("loss", "CrossEntropyLoss")
    yield from _argument_faults("optimizer", optimizer, OPTIMIZERS, (block,), training, "optimizerKwargs")
    yield from _argument_faults("loss", loss, LOSSES, (block,), training, "lossKwargs")
    weight = _mapping(training, "lossKwargs").get("weight")
    if isinstance(weight, list) and isinstance(outputs, int) and len(weight) != outputs:
        text = f"must hold one number for each of the {outputs} outputs. Got {len(weight)}."
        yield Fault((block, "lossKwargs", "weight"), text, fatal=True)
    for group, what, known in (
        ("lrSchedulers", "scheduler", SCHEDULERS),
        ("transformsTrain", "transform", TRANSFORMS),
        ("transformsTest", "transform", TRANSFORMS),
        ("transformsFinal", "transform", TRANSFORMS),
        ("metricsTest", "metric", METRICS),
    ):
        components = training.get(group)
        for i, component in enumerate(components if isinstance(components, list) else []):
            name = component.get("type") if isinstance(component, Mapping) else None
            yield from _unknown((block, group, i, "type"), name, what, known)
            if what != "metric" and isinstance(component, Mapping):
                yield from _argument_faults(what, name, known, (block, group, i), component, "kwargs", "stepKwargs")


def _argument_faults(
    kind: str, name: object, known: Iterable[str], key: KeyPath, block: Mapping[str, Any], *groups: str
) -> Iterator[Fault]:
    """Arguments of a known class that it does not take, texts where it takes none, and what it needs and is not given.

    Args:
        block: what holds the arguments, in the mappings called `groups`. key: where it stands.
    """
    signature = signature_of(kind, name) if isinstance(name, str) and name in known else None
    if signature is None:
        return
    given = [(group, argument) for group in groups for argument in map(str, _mapping(block, group))]
    unknown = [(group, argument) for group, argument in given if argument not in signature.known]
    for group, argument in unknown:
        yield Fault((*key, group, argument), no_such_argument(str(name), argument, signature.known), fatal=True)
    for group, argument in given if kind != "transform" else ():  # whose numbers may be words, as in value: random
        text = _text_in(_mapping(block, group)[argument])
        if text is not None and argument in signature.known and argument not in signature.texts:
            yield Fault((*key, group, argument), f"{name} takes no text here. Got {described(text)}.", fatal=True)
    missing = [argument for argument in signature.required if argument not in {word for _, word in given}]
    if missing and not unknown:  # which may be the missing one misspelt
        yield Fault(key, f"{name} needs {' and '.join(missing)}.", fatal=True)


def _text_in(value: object) -> str | None:
    """The first text in an argument that is no number written as one, which the schema refuses."""
    texts = [value] if isinstance(value, str) else []
    if isinstance(value, list):
        texts = [text for part in value if (text := _text_in(part)) is not None]
    return next((text for text in texts if not is_number(text)), None)


def _method_faults(methods: list[Any]) -> Iterator[Fault]:
    labels: dict[str, str] = {}  # by what a reader can tell them by
    for i, value in enumerate(methods):
        key = ("experiments", "methods", i)
        ref = {"name": value} if isinstance(value, str) else value
        if not isinstance(ref, Mapping) or not isinstance(ref.get("name"), str):
            continue
        try:
            entry = find_method(ref["name"])
            if isinstance(entry, MethodEntry):
                settings = _mapping(ref, "settings")
                made = spec_or_faults(entry, settings)
                wrong = made if isinstance(made, list) else ()
                yield from (Fault((*key, "settings", *path), text, fatal=True) for path, text in wrong)
                yield from _code_faults((*key, "settings"), entry, settings)
                label = ref.get("label") or (made.label if isinstance(made, MethodSpec) else entry.label)
                if ref.get("recalibrate") is True and (text := recalibration_fault(entry)):
                    yield Fault((*key, "recalibrate"), text, fatal=True)
            else:
                label = ref.get("label") or TORCHPRUNE_NAMES.get(ref["name"], ref["name"])
                yield Fault(key, entry, label)
        except ConfigError as error:
            yield from (Fault(key, problem, fatal=True) for problem in error.problems)
            continue
        text = _label_fault(str(label), reference=isinstance(entry, MethodEntry) and entry.label == REFERENCE)
        if text is None and (other := labels.get(look(str(label)))) is not None:
            alike = "" if other == label else f", which looks like '{other}' in a table"
            text = f"a second method with the label '{label}'{alike}. Give one of them a `label` of its own."
        if text is not None:
            yield Fault(key, text, fatal=True)
        labels[look(str(label))] = str(label)


def _label_fault(label: str, reference: bool) -> str | None:
    """Why a label cannot stand in tables; `reference`: it is that of the reference network itself."""
    if "\n" in label or "\t" in label or not look(label):
        return f"the label {label!r} must be a word or a few, on one line."
    if label.startswith(tuple(FORMULA)):
        return f"the label '{label}' begins with {label[0]}, as formulas of spreadsheets do. Begin it with a letter."
    if look(label) == REFERENCE and not reference:
        return f"the label '{label}' is that of the uncompressed network. Choose another `label`."
    return None


def _code_faults(key: KeyPath, entry: MethodEntry, settings: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings whose business it is to name code, and that name none; in the schemes of a composition, too."""
    schemes = settings.get("schemes") if entry.settings is ComposeSettings else None
    for i, scheme in enumerate(schemes if isinstance(schemes, list) else []):
        within = find_method(str(scheme.get("name"))) if isinstance(scheme, Mapping) else ""
        if isinstance(within, MethodEntry):
            yield from _code_faults((*key, "schemes", i, "settings"), within, _mapping(scheme, "settings"))
    for f in fields(entry.settings):
        value = settings.get(f.name)
        if not f.metadata.get(NAMES_CODE) or not isinstance(value, str):
            continue
        try:
            if not is_import_path(value):
                raise ConfigError(f"'{value}' is not an import path. Expected package.module:name.")
            source_hash(value.partition(":")[0])
        except ConfigError as error:
            yield Fault((*key, f.name), str(error), fatal=True)


def _grid_faults(experiments: Mapping[str, Any], methods: list[Any]) -> Iterator[Fault]:
    """Keep ratios may be left out where they are searched, or every method has a size of its own."""
    searched = experiments.get("search") is not None
    if experiments.get("spacing") not in (None, []) or experiments.get("mode") in (None, "train"):
        return
    refs = [{"name": value} if isinstance(value, str) else value for value in methods]
    own = [size for ref in refs if isinstance(ref, Mapping) for size in _sizes(ref, unknown=not searched)]
    if searched and all(own):
        text = "has no effect: there is no method whose size could be searched. Remove it."
        yield Fault(("experiments", "search"), text, fatal=True)
    elif not searched and (not own or not all(own)):
        yield Fault(("experiments",), "spacing is required and missing: the keep ratios.", fatal=True)


def _sizes(ref: Mapping[str, Any], unknown: bool) -> Iterator[bool]:
    """Whether a method's size is its own, `unknown` where its settings are wrong; nothing for the reference network."""
    try:
        entry = find_method(str(ref.get("name")))
        if isinstance(entry, str):
            yield False
        elif entry.label != "Reference":
            yield configure(entry, _mapping(ref, "settings")).fixed_size
    except ConfigError:  # told where methods are checked
        yield unknown


def _key(name: str, settings: Mapping[str, Any], registry: Mapping[str, Any]) -> dict[str, Any]:
    if is_import_path(name):
        try:
            return named(name, None, settings)
        except ConfigError:  # a fault, which is told; the plan is listed all the same
            return {"name": name}
    return named(name, registry[name].version, settings) if name in registry else {"name": name}


def _stamped(stamps: Stamps | None, dataset: NamedSettings, train: bool, network: Network) -> dict[str, str]:
    stamp = CONSTANT if stamps is None else stamps.of(dataset, train, network.output_size)
    return {} if stamp == CONSTANT else {"data": stamp}


def _spec(ref: MethodRef) -> MethodSpec:
    entry = find_method(ref.name)
    if isinstance(entry, str):
        label = ref.label or TORCHPRUNE_NAMES.get(ref.name, ref.name)
        return MethodSpec(ref.name, label, MethodEntry(label, object, "", "none"), None, recalibrate=ref.recalibrate)
    spec = configure(ref.name, ref.settings)
    return replace(spec, label=ref.label or spec.label, recalibrate=ref.recalibrate)
