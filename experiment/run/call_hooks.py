"""Calls the hooks of an experiment for the events of its workers, in the main process. A failing hook costs nothing."""

from __future__ import annotations

import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.config import Parameters
from experiment.errors import ConfigError, ExperimentError, StoreError, raised_at
from experiment.escaping import say as say_line
from experiment.files import read_json
from experiment.hooks import HOOKS
from experiment.hooks.hook import METHODS, CellFacts, Epoch, Run
from experiment.registry import resolve, suggestion
from experiment.run.cell.events import CellDone, EpochDone, EpochStarted, Event, Started, cell_name
from experiment.run.disk.damaged_files import RESULT
from experiment.run.disk.store import Store
from experiment.run.grid.cells import Cell
from experiment.run.grid.names import Fault
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.grid.task_name import metric_facts

MOST_FAILURES = 3  # of a hook in a row, after which it is switched off


def _hooks_of(plan: ExperimentPlan, debug: bool) -> Iterator[_Guarded]:
    """Raises: ConfigError: a hook cannot be imported or made, or has none of the methods of a hook."""
    problems = []
    for i, ref in enumerate(plan.file.parameters.experiments.hooks):
        try:
            yield _Guarded(ref.name, _make(ref.name, ref.settings), debug)
        except ConfigError as error:
            problems += [Fault(("experiments", "hooks", i), text).line(plan.file) for text in error.problems]
    if problems:
        raise ConfigError(problems)


def _make(name: str, settings: Mapping[str, Any]) -> object:
    factory = resolve(HOOKS.get(name, name))
    try:
        hook: object = factory(**settings) if callable(factory) else factory
    except ExperimentError:
        raise
    except Exception as error:  # from the user's own code, or from the package of the hook
        text = str(error).rstrip(".")
        raise ConfigError(
            f"'{name}' with settings {dict(settings)} raised {type(error).__name__}: {text}{raised_at(error)}."
        ) from error
    if not any(callable(getattr(hook, method, None)) for method in METHODS):
        raise ConfigError(f"'{name}' must make an object with at least one of the methods {', '.join(METHODS)}.")
    return hook


@dataclass
class _Guarded:
    """A hook whose errors are reported once, and which is switched off if it keeps failing."""

    name: str
    hook: object
    debug: bool
    told: bool = False
    failures: int = 0

    def misspelt(self) -> Iterator[str]:
        """Warnings about methods whose names begin as those of a hook, such as `cell_ends`."""
        for name in dir(self.hook):
            unknown = name.startswith(("run_", "cell_", "epoch_")) and name not in METHODS
            if unknown and callable(inspect.getattr_static(self.hook, name, None)):  # static: runs no property
                near = suggestion(name, METHODS)
                yield f"hook {self.name}: {name} is not a method of a hook and is not called.{near}"

    def call(self, method: str, arguments: Sequence[object], say: Callable[[str], None]) -> None:
        function = getattr(self.hook, method, None)
        if function is None or self.failures == MOST_FAILURES:
            return
        try:
            function(*arguments)
        except (Exception, SystemExit) as error:
            self.failures += 1
            if not self.told:
                what = f"{type(error).__name__}: {str(error).rstrip('.')}{raised_at(error)}"
                say(f"hook {self.name} failed in {method}: {what}. Results are not affected.")
                for line in traceback.format_exc().splitlines() if self.debug else ():
                    say(line)
                self.told = True
            if self.failures == MOST_FAILURES:
                say(f"hook {self.name} failed {MOST_FAILURES} times in a row and is not called again in this run.")
        else:
            self.failures = 0


class HookCalls:
    """Calls the hooks of one experiment.

    Args:
        num_cells: to compute in this run.
        debug: whether the traceback of a failing hook is shown.
    Raises: ConfigError: a hook cannot be imported or made, or has none of the methods of a hook.
    """

    def __init__(self, plan: ExperimentPlan, store: Store, num_cells: int, debug: bool) -> None:
        self._plan, self._store = plan, store
        # problems, such as unknown hooks, are told later
        self._hooks = [] if plan.problems else list(_hooks_of(plan, debug))
        self._say: Callable[[str], None] = say_line
        self._cells: dict[str, tuple[Cell, Parameters]] = {}  # by key
        for task in plan.references:
            self._cells.setdefault(task.cell.key, (task.cell, task.variant.parameters))
        for chain in plan.chains:
            for cell in (*chain.cells, *(chain.tickets.cells if chain.tickets is not None else ())):
                self._cells.setdefault(cell.key, (cell, chain.variant.parameters))
        self._current: dict[str, str] = {}  # name of the work -> key of the cell under way
        values = plan.file.parameters.model_dump(mode="json", by_alias=True)
        self._run = Run(plan.name, store.folder, num_cells, values)

    def start(self, say: Callable[[str], None]) -> None:
        """The run starts; errors of hooks go to `say`."""
        self._say = say
        for hook in self._hooks:
            for line in hook.misspelt():
                say(line)
        self._call("run_start", self._run)

    def end(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        """The run ends with these results, by key."""
        found = [results.get(cell.key, {}).get("status", "pending") for cell in self._plan.cells]
        self._call("run_end", self._run, Counter(found))

    def note(self, work: str, event: Event) -> None:
        """An event of the work of this name."""
        if isinstance(event, Started):
            self._current[work] = event.key
        key = event.key if isinstance(event, CellDone) else self._current.get(work)
        if not self._hooks or key is None:  # none: a damaged reference network is trained again for a later cell
            return
        cell, p = self._cells[key]
        facts = self._facts(cell, p)
        if isinstance(event, Started):
            self._call("cell_start", facts)
        elif isinstance(event, EpochStarted):
            self._call("epoch_start", facts, event.epoch, event.num_epochs)
        elif isinstance(event, EpochDone):
            valid = event.figures.get(f"valid_{metric_facts(p)['metrics'][0]}")
            self._call("epoch_end", facts, Epoch(event.epoch, event.num_epochs, event.loss, valid, event.figures))
        elif isinstance(event, CellDone):
            self._current.pop(work, None)
            self._call("cell_end", facts, self._result(cell, event))

    def _facts(self, cell: Cell, p: Parameters) -> CellFacts:
        return CellFacts(
            key=cell.key, name=cell_name(cell), folder=self._store.cells_folder / cell.folder, network=p.network.name,
            dataset=p.network.dataset.shown, variant=cell.variant, method=cell.method, label=cell.label,
            keep=cell.keep_target if cell.method != "Reference" else None, net=cell.net, repetition=cell.repetition,
            seed=p.seed,
        )  # fmt: skip

    def _result(self, cell: Cell, event: CellDone) -> dict[str, Any]:
        try:
            result = dict(read_json((self._store.find(cell) or self._store.cells_folder / cell.folder) / RESULT))
        except (FileNotFoundError, StoreError):  # removed or replaced already
            result = {"status": event.status, "error": event.error}
        return result | {"keep_parameters": event.keep_parameters}

    def _call(self, method: str, *arguments: object) -> None:
        for hook in self._hooks:
            hook.call(method, arguments, self._say)
