"""The plan of an experiment: its cells in grid order, and the keys of their results. Without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment.config import KeepStep, ParameterFile, Variant, keep_steps, load
from experiment.config.modes import rewinding, takes_tickets, with_rewinding
from experiment.config.tuning import num_trials
from experiment.errors import ConfigError
from experiment.files import safe_name
from experiment.methods.configure import MethodSpec
from experiment.run.grid import keys
from experiment.run.grid.cells import Cell, Chain, ReferenceSpec, ReferenceTask
from experiment.run.grid.data_facts import read_data_record
from experiment.run.grid.data_stamps import Stamps
from experiment.run.grid.hardware import Machine
from experiment.run.grid.methods import look_up_methods, spacing_faults
from experiment.run.grid.names import Fault, name_faults
from experiment.run.grid.weights_file import datasets_folder, find_given
from experiment.user_code import code_in, forget_changed


@dataclass(frozen=True)
class ExperimentPlan:
    """The whole grid of one parameter file.

    Attributes:
        methods: one per entry of `experiments.methods`.
        faults: unknown names, each with the variant that names it.
        stamps: the content of the data when the plan was made.
    """

    file: ParameterFile
    name: str
    machine: Machine
    references: tuple[ReferenceTask, ...]
    chains: tuple[Chain, ...]
    methods: tuple[MethodSpec | None, ...] = ()
    faults: tuple[tuple[Variant, Fault], ...] = ()
    stamps: Stamps | None = None

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """The faults as error lines, each once."""
        return tuple(dict.fromkeys(fault.line(self.file, variant) for variant, fault in self.faults))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells in grid order: variant, net, reference, then repetition, method, keep ratio."""
        following: dict[tuple[str, str], list[Cell]] = {}
        for chain in self.chains:
            following.setdefault((chain.reference_cell.key, chain.variant.name), []).extend(chain.cells)
        rows: list[Cell] = []
        for task in self.references:
            rows += [task.cell, *following.get((task.cell.key, task.variant.name), [])]
        return tuple(rows)

    @cached_property
    def computed(self) -> tuple[Cell, ...]:
        """All cells to compute: those of the grid, and the tickets of random controls."""
        tickets = [cell for chain in self.chains if chain.tickets is not None for cell in chain.tickets.cells]
        own = {cell.key for cell in self.cells}
        return (*self.cells, *{cell.key: cell for cell in tickets if cell.key not in own}.values())

    @cached_property
    def unavailable(self) -> dict[tuple[str, str], str]:
        """(variant, label, or "" for all of its cells) -> why they cannot run."""
        return {(variant.name, fault.label): fault.text for variant, fault in self.faults}

    def reason(self, cell: Cell) -> str | None:
        """Why a cell cannot run, if it cannot."""
        return self.unavailable.get((cell.variant, "")) or self.unavailable.get((cell.variant, cell.label))


def plan_experiment(
    file: ParameterFile,
    machine: Machine,
    *,
    datasets: Path | None = None,
    results: Path | None = None,
    reading: bool = False,
) -> ExperimentPlan:
    """Expand a parameter file into its grid.

    Args:
        datasets, results: folders that the command line sets.
        reading: load (and download) datasets whose content is not known otherwise.
    Raises: ConfigError: a method is invalid, or two methods have the same label.
    """
    name = file.name(results)
    if file.overrides:  # the name does not depend on the data: no stamps
        computed = [cell.key for cell in _plan(file, name, machine, datasets, None).cells]
        if computed != _keys_without_overrides(file, name, machine, datasets):
            name = f"{name}@{keys.digest(computed)[:8]}"
    folder = datasets_folder(file.values, datasets)
    stamps = Stamps(folder, read_data_record(file.results(results) / name).stamps, reading)
    return _plan(file, name, machine, datasets, stamps)


def _keys_without_overrides(
    file: ParameterFile, name: str, machine: Machine, datasets: Path | None
) -> list[str] | None:
    """The keys of the file's cells without `--set`; None if it is invalid without."""
    try:
        return [cell.key for cell in _plan(load(file.path), name, machine, datasets, None).cells]
    except ConfigError:
        return None


def _plan(
    file: ParameterFile, name: str, machine: Machine, datasets: Path | None, stamps: Stamps | None
) -> ExperimentPlan:
    plain = [variant.parameters.model_dump(mode="json", by_alias=True) for variant in file.variants]
    for module in dict.fromkeys(module for values in plain for module in code_in(values)):
        forget_changed(module)
    methods = look_up_methods(plain[0]["experiments"]["methods"])  # the same for all variants
    references: list[ReferenceTask] = []
    chains: list[Chain] = []
    faults: list[tuple[Variant, Fault]] = []
    for variant, values in zip(file.variants, plain, strict=True):
        own = [*name_faults(values, datasets), *methods.faults, *spacing_faults(values["experiments"], methods.specs)]
        if any(fault.fatal for fault in own):
            raise ConfigError([fault.line(file, variant) for fault in own])
        faults += [(variant, fault) for fault in own]
        data = keys.DataKeys.of(variant.parameters, stamps)
        tasks = list(_reference_tasks(variant, machine, data, datasets_folder(values, datasets)))
        references += tasks
        if variant.parameters.experiments.mode != "train":
            recipes = [_recipe(variant, method, machine) for method in methods.compared]
            for task in tasks:
                for repetition in range(variant.parameters.experiments.num_repetitions):
                    chains += [_chain(recipe, task, repetition, data) for recipe in recipes]
    return ExperimentPlan(file, name, machine, tuple(references), tuple(chains), methods.specs, tuple(faults), stamps)


def _reference_tasks(
    variant: Variant, machine: Machine, data: keys.DataKeys, datasets: Path
) -> Iterator[ReferenceTask]:
    p = variant.parameters
    weights = None if p.network.weights is None else find_given(p.network.weights, datasets)
    payload = keys.reference_payload(p, machine, data, weights)
    goes_back = rewinding(p.experiments) == "weights" or takes_tickets(p.experiments)
    rewind = p.retraining.start_epoch if goes_back else None
    names = "-".join(safe_name(name.rpartition(":")[2]) for name in (p.network.name, p.network.dataset.name))
    for net in range(p.experiments.num_nets):
        key = keys.digest(payload | {"net": net})
        spec = ReferenceSpec(key, f"{names}-n{net}-{key}", net, rewind, weights)
        cell = Cell(
            variant=variant.name, method="Reference", label="Reference", net=net, repetition=0, keep=1.0, between=(),
            key=keys.digest({"format": keys.FORMAT_VERSION, "reference": key, "test": data.test}),
            epochs_train=p.training.num_epochs, epochs_retrain=0,
        )  # fmt: skip
        yield ReferenceTask(variant, spec, cell)


@dataclass(frozen=True)
class _Recipe:
    """What the chains of one variant and method have in common. Tickets have a recipe of their own."""

    variant: Variant
    method: MethodSpec
    payload: Mapping[str, Any]
    tickets: _Recipe | None


def _recipe(variant: Variant, method: MethodSpec, machine: Machine) -> _Recipe:
    tickets = None
    if takes_tickets(variant.parameters.experiments) and not method.entry.restarts:
        rewound = replace(variant, name="tickets", parameters=with_rewinding(variant.parameters, "weights"))
        tickets = _recipe(rewound, method, machine)
    return _Recipe(variant, method, keys.cell_payload(variant.parameters, method, machine), tickets)


def _chain(recipe: _Recipe, task: ReferenceTask, repetition: int, data: keys.DataKeys) -> Chain:
    tickets = None if recipe.tickets is None else _chain(recipe.tickets, task, repetition, data)
    chain = Chain(recipe.variant, task.reference, task.cell, recipe.method, repetition, (), tickets)
    payload = {**recipe.payload, "reference": task.reference.key, "repetition": repetition}
    return replace(chain, cells=tuple(_cells(chain, payload, data)))


def _cells(chain: Chain, common: Mapping[str, Any], data: keys.DataKeys) -> Iterator[Cell]:
    p, method = chain.variant.parameters, chain.method
    epochs = num_trials(p) * keys.planned_epochs(p)
    search = None if method.fixed_size else p.experiments.search
    fixed_size, samples = method.fixed_size or search is not None, 0 if search is None else search.samples
    previous: str | None = None
    replayed: tuple[float, ...] = ()
    for i, step in enumerate((KeepStep(1.0, ()),) if fixed_size else keep_steps(p.experiments)):
        # one-shot: all compress-only steps so far are repeated, from the reference network on
        between = step.between if chain.in_order else () if method.entry.restarts else (*replayed, *step.between)
        replayed = between
        payload = {**common, "keep": step.keep, "between": between}
        if chain.in_order:
            payload["previous"] = previous
        made = keys.digest(payload)
        previous = made if chain.tickets is None else chain.tickets.cells[i].made
        yield Cell(
            variant=chain.variant.name, method=method.name, label=method.label, net=chain.reference.net,
            repetition=chain.repetition, keep=step.keep, between=between, key=keys.cell_key(made, data.test), made=made,
            epochs_train=p.training.num_epochs, epochs_retrain=max(1, samples) * epochs, fixed_size=fixed_size,
            samples=samples, complete=p.experiments.budget.complete,
        )  # fmt: skip
