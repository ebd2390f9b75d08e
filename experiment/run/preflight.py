"""Everything that can be known to be wrong before the first epoch: data, networks, optimizers. All of it at once."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiment.config import ParameterFile, Parameters, Variant
from experiment.datasets.transforms import check_transforms
from experiment.errors import ConfigError, DataError, ExperimentError, StoreError
from experiment.layers.forward_pass import Call, observing
from experiment.layers.plan import State
from experiment.measure import count, example_input
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.filters.settings import StructurePruneSettings
from experiment.random_streams import seeded
from experiment.run.cell.data import Data, transforms_of
from experiment.run.cell.reference import new_network, penalty_spec, train_settings
from experiment.run.disk.foreign_weights import load_given
from experiment.run.disk.store import Directories
from experiment.run.grid.data_facts import DataFacts, merged
from experiment.run.grid.plan import ExperimentPlan, Machine
from experiment.run.grid.weights_file import GivenWeights
from experiment.training.distributed import Team
from experiment.training.loop import check_training
from experiment.training.penalty import unmatched

Facts = dict[str, DataFacts]  # of data with their transforms


@dataclass(frozen=True)
class Look:
    """What was seen before running.

    Attributes:
        problems: each with its place in the parameter file; unknown names among them. With one, nothing is run.
        data: every dataset, with warnings.
    """

    problems: list[str]
    data: list[DataFacts]


def look_before_running(plan: ExperimentPlan, directories: Directories, machine: Machine) -> Look:
    """Load the data, make the networks and construct the optimizers once, here, so that no worker meets a surprise."""
    data = Data(directories.datasets, "cpu", readers=0, keep_sources=True)
    facts: Facts = {}
    problems = dict.fromkeys(plan.problems)  # in order, each once, for variants share most of what they say
    for variant in plan.file.variants:
        problems |= dict.fromkeys(_check_training(plan.file, variant, machine))
        if not problems:
            given = next(task.reference.weights for task in plan.references if task.variant.name == variant.name)
            problems |= dict.fromkeys(_check_network(plan.file, variant.parameters, data, given))
        if not problems:
            problems |= dict.fromkeys(_check_batches(plan.file, variant.parameters, data, machine))
        if not problems:
            problems |= dict.fromkeys(_check_data(plan.file, variant.parameters, data, facts))
    return Look(list(problems), merged(facts.values()))


def _check_training(file: ParameterFile, variant: Variant, machine: Machine) -> Iterator[str]:
    p = variant.parameters
    told = set()
    for block, training in (("training", p.training), ("retraining", p.retraining)):
        wrong = [*check_training(train_settings(training, machine)), *check_transforms(transforms_of(training))]
        for text in wrong:
            if text not in told and "unknown" not in text.partition("'")[0]:  # unknown names are told already
                told.add(text)
                key = text.partition(":")[0].replace("[", ".").replace("]", "").split(".")
                place = file.where(block, *(int(part) if part.isdigit() else part for part in key), variant=variant)
                yield f"{place}: {block}.{text}"


def _check_network(file: ParameterFile, p: Parameters, data: Data, given: GivenWeights | None) -> Iterator[str]:
    try:
        splits = data.splits(p, p.training)
        data.test(p)
    except (DataError, ConfigError) as error:
        yield f"{file.where('network', 'dataset')}: network.dataset: {error}"
        return
    where = f"{file.where('network', 'name')}: network.name"
    try:
        network = new_network(p, 0, splits.input_shape)
    except ConfigError as error:
        for problem in error.problems:
            key = problem.partition(":")[0].split(".")
            yield f"{file.where(*key)}: {problem}" if key[0] == "network" else f"{where}: {problem}"
    except ExperimentError as error:
        yield f"{where}: {error}"
    except Exception as error:  # whatever a user's own factory raises is the user's to read
        yield f"{where}: '{p.network.name}' raised {type(error).__name__}: {error}"
    else:
        yield from _check_penalties(file, p, network)
        idle = list(_check_patterns(file, p, network))
        example = example_input(splits.input_shape)
        yield from idle or _check_own_sizes(file, p, network, example)
        yield from _check_batch_norm(file, p, network, example)
        try:
            if given is not None:
                load_given(network, given)
        except StoreError as error:
            yield f"{file.where('network', 'weights')}: network.weights: {error}"


def _check_data(file: ParameterFile, p: Parameters, data: Data, facts: Facts) -> Iterator[str]:
    """Whether inputs can be trained on; `facts` gets what is seen, once for equal data and transforms."""
    for training in (p.training, p.retraining):
        key = data.key(p, training)
        try:
            facts[key] = facts[key] if key in facts else data.facts(p, training)
        except (DataError, ConfigError) as error:
            yield f"{file.where('network', 'dataset')}: network.dataset: {error}"
            return


def _check_batch_norm(file: ParameterFile, p: Parameters, network: nn.Module, example: Tensor) -> Iterator[str]:
    """Whether BatchNorm gets more than one value a channel where batches hold a single input."""
    alone = [b for b, training in (("training", p.training), ("retraining", p.retraining)) if training.batch_size == 1]
    if not alone:
        return

    def raise_if_alone(call: Call) -> None:
        if call.module.training and call.input.numel() == call.input.shape[1]:
            raise _OneValue(call.name)

    norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    try:
        with torch.no_grad(), seeded("check"), observing(norms, before=raise_if_alone):
            network.train()(example[:1])
    except _OneValue as found:
        yield (
            f"{file.where(alone[0], 'batchSize')}: {alone[0]}.batchSize: '{found}' is a BatchNorm with one value a "
            "channel and input: it cannot train on batches of 1. Use a batchSize of at least 2."
        )


class _OneValue(Exception):
    """A BatchNorm, by its name, has nothing to take a variance of."""


def _check_penalties(file: ParameterFile, p: Parameters, network: nn.Module) -> Iterator[str]:
    """Whether every pattern names a layer of the network as it is before compression."""
    told = set()  # retraining says what training said
    for block, training in (("training", p.training), ("retraining", p.retraining)):
        for i, text in unmatched(network, [penalty_spec(penalty) for penalty in training.penalties]):
            place = file.where(block, "penalties", i, "layers")
            if (place, text) not in told:
                told.add((place, text))
                yield f"{place}: {block}.penalties[{i}].layers: {text}"


def _check_patterns(file: ParameterFile, p: Parameters, network: nn.Module) -> Iterator[str]:
    """Whether every pattern in the settings of methods names a module of the uncompressed network.

    One that does may still name none that the method is about, which the method says itself.
    """
    modules = [name for name, _ in network.named_modules() if name]
    layers = [n for n, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for i, method in enumerate(p.experiments.methods):
        for path, pattern in _patterns(method.name, method.settings):
            if not fnmatch.filter(modules, pattern):
                where = file.where("experiments", "methods", i, "settings", *path)
                key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
                yield (
                    f"{where}: experiments.methods[{i}].settings{key}: nothing is called '{pattern}'. "
                    f"The layers are {', '.join(layers)}."
                )


def _check_own_sizes(file: ParameterFile, p: Parameters, network: nn.Module, example: Tensor) -> Iterator[str]:
    """Whether methods with a size of their own, which need no data to choose, can be applied to such a network."""
    for i, ref in enumerate(p.experiments.methods):
        spec = configure(ref.name, ref.settings)
        if spec.entry not in METHODS.values():
            continue
        spec = spec.schemes[0] if spec.schemes else spec  # the other schemes start from what the first one leaves
        settings = spec.settings
        if not spec.fixed_size:
            continue
        if isinstance(settings, StructurePruneSettings):
            settings = replace(settings, fold="none", refit=False)
        try:
            state = State(network.eval(), example)
            Compressor(make_method(spec.entry, settings), state, count(network, example), None, torch.Generator()).plan(
                1.0
            )
        except ExperimentError as error:
            yield f"{file.where('experiments', 'methods', i)}: experiments.methods[{i}]: {error}"


def _patterns(name: str, settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where registered methods' settings name layers, with the name patterns."""
    for key in ("ignore", "layers") if name in METHODS else ():
        given = settings.get(key)
        patterns = [given] if isinstance(given, str) else given if isinstance(given, list | tuple | dict) else ()
        yield from (((key,), str(pattern)) for pattern in patterns)
    for i, scheme in enumerate(settings.get("schemes", ()) if name in METHODS else ()):
        if isinstance(scheme, dict):
            for path, pattern in _patterns(str(scheme.get("name")), scheme.get("settings") or {}):
                yield ("schemes", i, "settings", *path), pattern


def _check_batches(file: ParameterFile, p: Parameters, data: Data, machine: Machine) -> Iterator[str]:
    """Whether processes that train with others can do so in this mode, and each gets an image of every batch."""
    if machine.processes > 1 and p.experiments.mode == "lc":
        yield (
            f"{file.where('experiments', 'mode')}: experiments.mode: lc trains every network in one process. Got "
            f"{machine.processes} under torchrun. Run it without, -j N computes N cells at once."
        )
    blocks = (("training", p.training), ("retraining", p.retraining)) if machine.processes > 1 else ()
    for block, training in blocks:
        num_images = len(data.splits(p, training).train)
        if problem := Team(0, machine.processes).problem(num_images, training.batch_size):
            yield f"{file.where(block, 'batchSize')}: {block}.{problem}"
            return  # retraining says what training said
