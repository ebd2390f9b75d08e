"""Checks before the first epoch: data, networks, optimizers, methods. All errors are reported at once."""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from experiment.config import Parameters, Variant
from experiment.config.tuning import trained_blocks
from experiment.config.value_tree import KeyPath
from experiment.datasets.image_data import Splits
from experiment.datasets.transforms import check_transforms
from experiment.errors import ConfigError, DataError, ExperimentError, StoreError, first_line
from experiment.inputs import Inputs, call_network, first, moved
from experiment.layers.forward_pass import Call, evaluating, observing
from experiment.layers.plan import State
from experiment.layers.prepare_network import prepared
from experiment.lc.state import LCRecord
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import MethodSpec
from experiment.methods.filters.settings import StructurePruneSettings
from experiment.random_streams import seeded
from experiment.run.cell.data import Data, traced_input, transforms_of
from experiment.run.cell.outcome import task_of
from experiment.run.cell.reference import new_network
from experiment.run.cell.training_settings import penalty_spec, train_settings
from experiment.run.disk.cell_result import CellResult
from experiment.run.disk.load_weights import load_given
from experiment.run.disk.results_table import BYTE_COLUMNS, CLASSIFICATION, OTHER_COLUMNS, SHARED_COLUMNS
from experiment.run.disk.store import Directories
from experiment.run.grid.data_facts import DataFacts, merged
from experiment.run.grid.hardware import Machine
from experiment.run.grid.names import Fault
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.grid.weights_file import GivenWeights
from experiment.tasks.distributions import CATEGORICAL
from experiment.training.check_settings import check_training
from experiment.training.distributed import Team
from experiment.training.factories import make_loss
from experiment.training.loop import EpochRecord
from experiment.training.penalty import unmatched

Found = Iterator[tuple[KeyPath, str]]  # the key to blame, and the error


@dataclass(frozen=True)
class Checked:
    """The result of the checks.

    Attributes:
        problems: errors with their places, including unknown names. If there are any, nothing is run.
        data: all datasets, with warnings.
    """

    problems: list[str]
    data: list[DataFacts]


def check_before_running(plan: ExperimentPlan, directories: Directories, machine: Machine) -> Checked:
    """Load the data, build the networks and construct the optimizers once, before workers do so."""
    data = Data(directories.datasets, "cpu", readers=0, keep_sources=True)
    facts: dict[str, DataFacts] = {}
    problems = dict.fromkeys(plan.problems)  # in order, each once: variants have most errors in common
    for variant in plan.file.variants:
        p = variant.parameters
        given = next(task.reference.weights for task in plan.references if task.variant.name == variant.name)
        for found in (
            _check_training(plan, variant, machine),
            _check_network(p, plan.methods, data, given, machine),
            _check_batches(p, data, machine),
            _check_data(p, data, facts),
        ):
            problems |= {Fault(key, text).line(plan.file, variant): None for key, text in found}
            if problems:
                break
    return Checked(list(problems), merged(facts.values()))


def _check_task(p: Parameters) -> Found:
    """Whether the task can be made, and its metrics have columns of their own."""
    files = {f.name for record in (EpochRecord, LCRecord) for f in fields(record)}
    taken = {*SHARED_COLUMNS, *BYTE_COLUMNS, *CellResult.model_fields, *files} - {*CLASSIFICATION}
    try:
        for name in (metric.name for metric in task_of(p).metrics):
            if name in taken or OTHER_COLUMNS.fullmatch(name):
                yield ("network", "task"), f"metric {name}: results have another column of this name. Rename it."
    except ConfigError as error:
        yield ("network", "task"), str(error)


def _check_training(plan: ExperimentPlan, variant: Variant, machine: Machine) -> Found:
    p = variant.parameters
    unknown = [fault.key[1:] for other, fault in plan.faults if other.name == variant.name]
    faults = [] if ("task",) in unknown else list(_check_task(p))
    yield from faults
    if faults or ("task",) in unknown:
        return
    texts = set()  # retraining inherits the settings of training
    for place, training in trained_blocks(p):
        for line in [*check_training(train_settings(p, training, machine)), *check_transforms(transforms_of(training))]:
            key, text = _key_and_text(line)
            if line not in texts and not any(name[: len(key)] == key for name in unknown):
                texts.add(line)
                yield (*place, *key), text


def _key_and_text(line: str) -> tuple[KeyPath, str]:
    """The two parts of an error `setting: what is wrong`."""
    setting, _, text = line.partition(": ")
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", setting)), text


def _check_network(
    p: Parameters, methods: tuple[MethodSpec | None, ...], data: Data, given: GivenWeights | None, machine: Machine
) -> Found:
    name: KeyPath = ("network", "name")
    try:
        splits = data.splits(p, p.training)
        example = moved(traced_input(splits), "cpu")
    except (DataError, ConfigError) as error:
        yield ("network", "dataset"), str(error)
        return
    if faults := list(_check_test_sets(p, data)):
        yield from faults
        return
    try:
        network = new_network(p, 0, splits)
    except ConfigError as error:
        for problem in error.problems:
            key, text = _key_and_text(problem)
            yield (key, text) if key[0] == "network" else (name, problem)
    except ExperimentError as error:
        yield name, str(error)
    except Exception as error:  # of the user's own factory
        yield name, f"'{p.network.name}' raised {type(error).__name__}: {error}"
    else:
        yield from _check_penalties(p, network)
        unmatched_patterns = list(_check_patterns(methods, network))
        yield from unmatched_patterns or _check_fixed_sizes(methods, network, example)
        yield from _check_batch_norm(p, network, example)
        yield from _check_scores(p, network, splits, machine)
        yield from _check_noise(p, example)
        yield from _check_classes(p, methods)
        try:
            if given is not None:
                load_given(network, given)
        except StoreError as error:
            yield ("network", "weights"), str(error)


def _check_noise(p: Parameters, example: Inputs) -> Found:
    """Whether the response to noise can be measured."""
    if "noise" not in p.experiments.measure:
        return
    place: KeyPath = ("experiments", "measure")
    if task_of(p).distribution.predictions is None:
        yield place, f"noise compares discrete predictions, which task {task_of(p).name} has none of. Remove it."
    elif not isinstance(example, Tensor) or not example.is_floating_point():
        yield place, "noise is added to inputs that are one tensor of numbers. Got others. Remove it."


def _check_classes(p: Parameters, methods: tuple[MethodSpec | None, ...]) -> Found:
    """Whether methods that need classes have them."""
    for i, spec in enumerate(methods):
        for each in () if spec is None else (spec, *spec.schemes):
            if each.entry.needs_classes and task_of(p).distribution is not CATEGORICAL:
                yield ("experiments", "methods", i), f"{each.entry.label} needs classes; the task is {task_of(p).name}."


def _check_scores(p: Parameters, network: nn.Module, splits: Splits, machine: Machine) -> Found:
    """Whether the loss and the metrics of the task accept the outputs of the network."""
    task, (x, y) = task_of(p), splits.train.first(2)
    settings = train_settings(p, p.training, machine)
    with evaluating(network), torch.no_grad():
        outputs = task.outputs(call_network(network, x)).float()
    try:
        make_loss(settings.loss, {**task.loss_kwargs, **settings.loss_kwargs})(outputs, y)
    except Exception as error:  # torch's
        shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(y.shape)}"
        text = f"cannot score {shapes}: {type(error).__name__}: {first_line(error).rstrip('.')}"
        if settings.loss_kwargs:
            yield ("training", "lossKwargs"), f"{settings.loss} with {dict(settings.loss_kwargs)} {text}. Change them."
        else:
            text = f"the task {task.name} {text}. Choose the task that the dataset was made for, or another network."
            yield ("network", "task"), text
        return
    for metric in task.metrics:
        try:
            metric.try_out(outputs, y)
        except ConfigError as error:
            yield ("network", "task"), f"task {task.name}: {error}"


def _check_test_sets(p: Parameters, data: Data) -> Found:
    """Whether every test set can be read."""
    several = len(p.experiments.dataset_test) > 1
    for i, dataset in enumerate(p.experiments.dataset_test):
        try:
            data.test(p, dataset=dataset).first(1)
        except (DataError, ConfigError) as error:
            yield ("experiments", "datasetTest", *([i] if several else [])), str(error)


def _check_data(p: Parameters, data: Data, facts: dict[str, DataFacts]) -> Found:
    """Whether the inputs can be trained on. Facts about the data are added to `facts`, once per data and transforms."""
    for _, training in trained_blocks(p):
        key = data.key(p, training)
        try:
            facts[key] = facts[key] if key in facts else data.facts(p, training)
        except (DataError, ConfigError) as error:
            yield ("network", "dataset"), str(error)
            return


def _check_batch_norm(p: Parameters, network: nn.Module, example: Inputs) -> Found:
    """Whether BatchNorm gets more than one value per channel if batches hold a single input."""
    if not (places := [place for place, training in trained_blocks(p) if training.batch_size == 1]):
        return
    single: list[str] = []

    def note_single_value(call: Call) -> None:
        if call.module.training and call.input.numel() == call.input.shape[1]:
            single.append(call.name)
            call.module.eval()  # in training mode the forward pass would fail

    norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    with torch.no_grad(), seeded("check"), observing(norms, before=note_single_value):
        call_network(network.train(), first(example))
    if single:
        text = f"'{single[0]}' is a BatchNorm with one value per channel and input: it cannot train on batches of 1."
        yield (*places[0], "batchSize"), f"{text} Use a batchSize of at least 2."


def _check_penalties(p: Parameters, network: nn.Module) -> Found:
    """Whether every pattern matches a layer of the uncompressed network."""
    seen = set()
    for place, training in trained_blocks(p):
        for i, text in unmatched(network, [penalty_spec(penalty) for penalty in training.penalties]):
            if (i, text) not in seen:
                seen.add((i, text))
                yield (*place, "penalties", i, "layers"), text


def _check_patterns(methods: tuple[MethodSpec | None, ...], network: nn.Module) -> Found:
    """Whether every pattern in the settings of methods matches a module of the uncompressed network."""
    modules = [name for name, _ in network.named_modules() if name]
    layers = [n for n, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for i, spec in enumerate(methods):
        for path, pattern in _patterns(spec) if spec is not None else ():
            if not fnmatch.filter(modules, pattern):
                text = f"no layer matches '{pattern}'. The layers are {', '.join(layers)}."
                yield ("experiments", "methods", i, "settings", *path), text


def _patterns(spec: MethodSpec) -> Found:
    """The layer-name patterns in the settings of a registered method."""
    if spec.entry in METHODS.values():
        for key in ("ignore", "layers"):
            yield from (((key,), pattern) for pattern in getattr(spec.settings, key, None) or ())
    for i, scheme in enumerate(spec.schemes):
        yield from ((("schemes", i, "settings", *path), pattern) for path, pattern in _patterns(scheme))


def _check_fixed_sizes(methods: tuple[MethodSpec | None, ...], network: nn.Module, example: Inputs) -> Found:
    """Whether methods of a fixed size, which need no data for their choice, can be applied to the network."""
    for i, method in enumerate(methods):
        if method is None or method.entry not in METHODS.values():
            continue
        spec = method.schemes[0] if method.schemes else method  # later schemes start from the result of the first
        if not spec.fixed_size:
            continue
        settings = spec.settings
        if isinstance(settings, StructurePruneSettings):
            settings = replace(settings, fold="none", refit=False)
        plain = prepared(network.eval())
        state = State(plain.network, example, unfused=plain.unfused)
        try:
            made, original = make_method(spec.entry, settings), count(state.network, example)
            Compressor(made, state, original, Calibration(example), torch.Generator()).plan(1.0)
        except ExperimentError as error:
            yield ("experiments", "methods", i), str(error)


def _check_batches(p: Parameters, data: Data, machine: Machine) -> Found:
    """Whether several processes can train a network together in this mode, and each gets an image of every batch."""
    if machine.processes == 1:
        return
    if p.experiments.mode == "lc":
        text = f"lc trains every network in one process. Got {machine.processes} under torchrun."
        yield ("experiments", "mode"), f"{text} Run it without torchrun; -j N computes N cells at once."
    for place, training in trained_blocks(p):
        num_images = len(data.splits(p, training).train)
        if problem := Team(0, machine.processes).problem(num_images, training.batch_size):
            key, text = _key_and_text(problem)
            yield (*place, *key), text
            return  # retraining inherits the batch size
