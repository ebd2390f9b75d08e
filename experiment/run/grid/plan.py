"""Which cells an experiment has, in grid order, with the keys under which their results are kept. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from experiment.config import (
    KeepStep,
    ParameterFile,
    Variant,
    is_cascade,
    keep_steps,
    rewinding,
    takes_tickets,
    with_rewinding,
)
from experiment.files import safe_name
from experiment.methods.configure import MethodSpec
from experiment.run.grid.data_facts import remembered_stamps
from experiment.run.grid.data_stamps import Stamps
from experiment.run.grid.keys import FORMAT_VERSION, cell_key, digest
from experiment.run.grid.lookup import Names, method_key, resolve_names
from experiment.run.grid.resolved import Precision, mode_key, planned_epochs, retraining_key, search_key, training_key
from experiment.run.grid.weights_file import DATASETS_FOLDER, GivenWeights


@dataclass(frozen=True)
class Machine:
    """What of the machine decides numbers: the kind of device; the device itself only says where.

    Attributes:
        processes: that train each network together. Like threads, they order sums otherwise, and dropout draws by them.
        auto: what `precision: auto` becomes, which the GPU's model decides.
    """

    device: str  # cpu, cuda, cuda:1, ...
    processes: int = 1
    auto: Precision = "fp32"

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class ReferenceSpec:
    """One trained, uncompressed network, shared by every experiment that agrees on everything that made it."""

    key: str
    folder: str  # its name under the folder of trained networks
    net: int
    rewind_epoch: int | None
    weights: GivenWeights | None = None  # what its training starts from; None: random weights


@dataclass(frozen=True)
class Cell:
    """One row of the results: (variant, net, repetition, method, keep ratio).

    Attributes:
        fixed_size: whether the method's settings decide its size, or it is searched; `keep` is 1 then, and no target.
        samples: the most networks that are made to search it, all in `epochs_retrain`; 0 where it is not searched.
        made: a hash of all that makes its network, the test data left out.
    """

    variant: str
    method: str
    label: str
    net: int
    repetition: int
    keep: float
    between: tuple[float, ...]
    key: str
    epochs_train: int
    epochs_retrain: int
    fixed_size: bool = False
    samples: int = 0
    made: str = ""

    @property
    def keep_target(self) -> float | None:
        """The keep ratio that was asked for, where one was."""
        return None if self.fixed_size else self.keep

    @property
    def size(self) -> str:
        """The keep ratio that was asked for, in words."""
        if self.samples:
            return "as small as can be"
        return "at its own size" if self.fixed_size else f"keep {self.keep:.4g}"

    @property
    def folder(self) -> str:
        parts = [self.label, f"n{self.net}", f"r{self.repetition}", f"{self.keep:.6g}", self.key]
        return "-".join(safe_name(p) for p in ([self.variant, *parts] if self.variant else parts))


@dataclass(frozen=True)
class Chain:
    """The cells of one (variant, net, repetition, method) in the order in which they must be computed.

    A cascade's cell starts from the one before; one-shot cells that one worker computes share the analysis.

    Attributes:
        tickets: in a cascade with random weights the same cells with rewound ones, computed before: a cell starts from
            the ticket before it, so that it has the structure of the ticket at its own keep ratio.
    """

    variant: Variant
    reference: ReferenceSpec
    reference_cell: Cell
    method: MethodSpec
    repetition: int
    cells: tuple[Cell, ...]
    tickets: Chain | None = None

    @property
    def in_order(self) -> bool:
        """Whether a cell starts from the one before: a cascade. Other cells may be computed apart."""
        return is_cascade(self.variant.parameters.experiments) and not self.method.entry.restarts


@dataclass(frozen=True)
class ReferenceTask:
    """Train (or find trained) one reference network and test it: the row `Reference`."""

    variant: Variant
    reference: ReferenceSpec
    cell: Cell


@dataclass(frozen=True)
class ExperimentPlan:
    """The whole grid of one parameter file.

    Attributes:
        unavailable: (variant, label, or "" for all of its cells) -> why they cannot run: a name that is not known.
        problems: the same as full error lines with file and line.
        stamps: what the data were when it was made.
    """

    file: ParameterFile
    name: str
    machine: Machine
    references: tuple[ReferenceTask, ...]
    chains: tuple[Chain, ...]
    unavailable: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    stamps: Stamps | None = None

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Grid order: variant, net, the reference, then repetition, method, keep ratio."""
        following: dict[tuple[str, str], list[Cell]] = {}
        for chain in self.chains:
            following.setdefault((chain.reference_cell.key, chain.variant.name), []).extend(chain.cells)
        rows: list[Cell] = []
        for task in self.references:
            rows += [task.cell, *following.get((task.cell.key, task.variant.name), [])]
        return tuple(rows)

    @cached_property
    def computed(self) -> tuple[Cell, ...]:
        """All cells that must be computed: those of the grid, and the tickets that controls start from."""
        tickets = [cell for chain in self.chains if chain.tickets is not None for cell in chain.tickets.cells]
        own = {cell.key for cell in self.cells}
        return (*self.cells, *{cell.key: cell for cell in tickets if cell.key not in own}.values())

    def reason(self, cell: Cell) -> str | None:
        """Why a cell cannot run here, if it cannot."""
        return self.unavailable.get((cell.variant, "")) or self.unavailable.get((cell.variant, cell.label))


def plan_experiment(
    file: ParameterFile,
    machine: Machine,
    *,
    base: ParameterFile | None = None,
    datasets: Path | None = None,
    results: Path | None = None,
    reading: bool = False,
) -> ExperimentPlan:
    """Expand a parameter file into its grid.

    Args:
        base: the file without `--set` overrides, if it is valid: where those change what is computed, the name says so.
        datasets, results: where the command line says that datasets lie, and where results go.
        reading: whether datasets may be loaded, and downloaded, where nothing else tells what is in them.
    Raises: ConfigError: a method's settings are wrong, or two methods share a label.
    """
    name = file.name(results)
    if file.overrides:  # whatever the data are: the same overrides lead to the same folder
        asked = _computed(_plan(file, name, machine, datasets, None))
        if base is None or asked != _computed(_plan(base, name, machine, datasets, None)):
            name = f"{name}@{digest(asked)[:8]}"
    said = file.parameters.directories.training_data
    folder = datasets or (Path(said) if said else DATASETS_FOLDER)
    return _plan(
        file, name, machine, datasets, Stamps(folder, remembered_stamps(file.results(results) / name), reading)
    )


def _plan(
    file: ParameterFile, name: str, machine: Machine, datasets: Path | None, stamps: Stamps | None
) -> ExperimentPlan:
    references: list[ReferenceTask] = []
    chains: list[Chain] = []
    unavailable: dict[tuple[str, str], str] = {}
    problems: dict[str, None] = {}  # in order, each once
    for variant in file.variants:
        names = resolve_names(file, variant, datasets, stamps)
        unavailable.update({(variant.name, fault.label): fault.text for fault in names.faults})
        problems.update(dict.fromkeys(fault.line(file, variant) for fault in names.faults))
        for net in range(variant.parameters.experiments.num_nets):
            task = _reference_task(variant, net, machine, names)
            references.append(task)
            if variant.parameters.experiments.mode != "train":
                chains.extend(_chains(variant, task, machine, names))
    return ExperimentPlan(file, name, machine, tuple(references), tuple(chains), unavailable, tuple(problems), stamps)


def _computed(plan: ExperimentPlan) -> list[str]:
    """What a plan computes: equal for overrides that change nothing that is computed."""
    return [cell.key for cell in plan.cells]


def _reference_task(variant: Variant, net: int, machine: Machine, names: Names) -> ReferenceTask:
    p = variant.parameters
    payload = {
        "format": FORMAT_VERSION,
        "network": names.network_key | {"output_size": p.network.output_size, "input_shape": names.input_shape},
        "dataset": names.dataset_key,
        "training": training_key(p.training, machine.kind, machine.auto),
        "net": net,
        "seed": p.seed,
        "device": machine.kind,
        "threads": p.threads,
    }
    if machine.processes > 1:
        payload["processes"] = machine.processes
    key = digest(payload)
    network, dataset = _short(p.network.name), _short(p.network.dataset.name)
    goes_back = rewinding(p.experiments) == "weights" or takes_tickets(p.experiments)
    rewind = p.retraining.start_epoch if goes_back else None
    folder = f"{safe_name(network)}-{safe_name(dataset)}-n{net}-{key}"
    spec = ReferenceSpec(key, folder, net, rewind, names.weights)
    tested = {"format": FORMAT_VERSION, "reference": key, "test": names.test_key}
    cell = Cell(
        variant=variant.name, method="Reference", label="Reference", net=net, repetition=0, keep=1.0, between=(),
        key=digest(tested), epochs_train=p.training.num_epochs, epochs_retrain=0,
    )  # fmt: skip
    return ReferenceTask(variant, spec, cell)


def _chains(variant: Variant, task: ReferenceTask, machine: Machine, names: Names) -> Iterator[Chain]:
    experiments = variant.parameters.experiments
    for repetition in range(experiments.num_repetitions):
        for method in names.methods:
            yield _chain(variant, task, method, repetition, machine, names)


def _chain(
    variant: Variant, task: ReferenceTask, method: MethodSpec, repetition: int, machine: Machine, names: Names
) -> Chain:
    tickets = None
    if takes_tickets(variant.parameters.experiments) and not method.entry.restarts:
        rewound = replace(variant, name="tickets", parameters=with_rewinding(variant.parameters, "weights"))
        tickets = _chain(rewound, task, method, repetition, machine, names)
    befores = None if tickets is None else tuple(cell.made for cell in tickets.cells)
    cells = tuple(_cells(variant, task, method, repetition, machine, names, befores))
    return Chain(variant, task.reference, task.cell, method, repetition, cells, tickets)


def _cells(
    variant: Variant,
    task: ReferenceTask,
    method: MethodSpec,
    repetition: int,
    machine: Machine,
    names: Names,
    tickets: tuple[str, ...] | None,
) -> Iterator[Cell]:
    """Args: tickets: `made` of the cells that those of a cascade start from, where these are not their own."""
    p = variant.parameters
    epochs = planned_epochs(p)
    cascade = is_cascade(p.experiments) and not method.entry.restarts
    search = None if method.fixed_size else p.experiments.search
    own_size, samples = method.fixed_size or search is not None, 0 if search is None else search.samples
    common = {
        "format": FORMAT_VERSION,
        "reference": task.reference.key,
        "method": method_key(method),
        "budget": p.experiments.budget,
        **mode_key(p),
        **search_key(search),
        "coresets": p.coresets.model_dump(mode="json", exclude_defaults=True),
        "test": None,  # see cell_key
        "repetition": repetition,
        "retraining": retraining_key(p, machine.kind, machine.auto, epochs),
    }
    previous: str | None = None
    replayed: tuple[float, ...] = ()
    steps = (KeepStep(1.0, ()),) if own_size else keep_steps(p.experiments)
    for i, step in enumerate(steps):
        # One-shot with compress-only steps: all earlier ones are taken again, from the reference network on.
        between = step.between if cascade else () if method.entry.restarts else (*replayed, *step.between)
        replayed = between
        payload = common | {"keep": step.keep, "between": between}
        if cascade:
            payload["previous"] = previous
        made = digest(payload)
        previous = made if tickets is None else tickets[i]
        yield Cell(
            variant=variant.name, method=method.name, label=method.label, net=task.reference.net,
            repetition=repetition, keep=step.keep, between=between, key=cell_key(made, names.test_key), made=made,
            epochs_train=p.training.num_epochs, epochs_retrain=max(1, samples) * epochs, fixed_size=own_size,
            samples=samples,
        )  # fmt: skip


def _short(name: str) -> str:
    return name.rpartition(":")[2] if ":" in name else name


def chain_key(chain: Chain) -> str:
    """What stands for a chain as a whole: the name of its lock where it is done as a whole."""
    return digest([cell.key for cell in chain.cells])
