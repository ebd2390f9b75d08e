"""One call of the command: prepares experiments, runs their open work, and writes their tables and reports."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiment.errors import ConfigError, StoreError, plural
from experiment.escaping import json_text
from experiment.escaping import say as say_line
from experiment.files import read_json, write_whole
from experiment.run.call_hooks import HookCalls
from experiment.run.cell.context import Context
from experiment.run.cell.events import CellDone, Event, Note, Started
from experiment.run.disk.parameters_file import write_parameters
from experiment.run.disk.results_table import write_results_table
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.data_facts import remember_data
from experiment.run.grid.hardware import Machine, Resources, resources_of
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.machine import ENVIRONMENT, describe_environment, usable_cores, visible_gpus
from experiment.run.measure_deployed import measure_deployed
from experiment.run.summary import WrittenReport, summarise
from experiment.run.workers.live_state import LiveFiles
from experiment.run.workers.pool import run_in_pool, run_serially
from experiment.run.workers.processes import Processes
from experiment.run.workers.progress_bar import ProgressBar
from experiment.run.workers.queue import Queue, Work, cells_of, open_work

if TYPE_CHECKING:  # imports torch
    from experiment.run.cell.torchrun_group import Crew

SECONDS_BETWEEN_TABLES = 2.0  # minimum interval, and at least
TABLES_ASIDE = 20  # times the duration of the last write


@dataclass(frozen=True)
class Options:
    """The command line, apart from the parameter files.

    Attributes:
        workers: processes on this machine, or tasks of Ray; None for as many as the cores or GPUs allow.
        share: (K, N) of a job array, or None.
        executor: serial, processes or ray; None chooses one of the first two by the number of workers.
        crew: the processes that take part in every training under torchrun; there is one worker then.
        debug: whether the tracebacks of failed cells are printed.
    """

    workers: int | None = None
    share: tuple[int, int] | None = None
    executor: str | None = None
    retry_failed: bool = False
    verbosity: int = 0
    crew: Crew | None = None
    debug: bool = False


class _Experiment(NamedTuple):
    plan: ExperimentPlan
    store: Store
    directories: Directories


def run_session(
    plans: Sequence[ExperimentPlan],
    directories: Sequence[Directories],
    options: Options,
    write_report: Callable[[Path], WrittenReport],
    say: Callable[[str], None],
) -> int:
    """Compute the open cells of every experiment, and write its table and report; returns the exit status.

    Raises: ConfigError: a problem that would make every cell fail (an unknown name, missing data).
    """
    pairs = zip(plans, directories, strict=True)
    experiments = [_Experiment(plan, Store(place.results / plan.name), place) for plan, place in pairs]
    work: list[Work] = []
    for i, (plan, store, _) in enumerate(experiments):
        found = store.results(cells_of(plan, options.share))
        work += open_work(i, plan, found, retry_failed=options.retry_failed, share=options.share)
    with LiveFiles([store.folder for _, store, _ in experiments], plans[0].machine.device, options.share) as live:
        if work:
            _compute(experiments, work, options, live)
        complete = [_finish(i, each, options, live, write_report, say) for i, each in enumerate(experiments)]
    return 0 if all(complete) else 1


def _finish(
    index: int,
    experiment: _Experiment,
    options: Options,
    live: LiveFiles,
    write_report: Callable[[Path], WrittenReport],
    say: Callable[[str], None],
) -> bool:
    """Measure finished networks, and write table and report; returns whether no cell failed or is open."""
    plan, store, place = experiment

    def note(text: str) -> None:
        live.show(index, "", Note(text))
        if options.verbosity >= 0:
            _note(text)

    _describe(plan, store)
    live.show(index, "", Started("measurements and report", 0.0))
    results = write_results_table(store, plan)
    measures = options.share is None or not open_work(0, plan, results)  # one machine measures everything
    again = options.retry_failed
    if measures and measure_deployed(plan, store, results, place.datasets, note, retry_failed=again):
        results = write_results_table(store, plan)
    report = write_report(store.folder)
    live.end(index)
    summarise(plan, results, store, report, say, debug=options.debug)
    return not open_work(0, plan, results, retry_failed=True, share=options.share)


def _compute(experiments: Sequence[_Experiment], work: list[Work], options: Options, live: LiveFiles) -> None:
    num_cells = Counter(item.experiment for item in work for _ in item.cells)
    touched = {i: experiments[i] for i in sorted(num_cells)}
    hooks = {i: HookCalls(plan, store, num_cells[i], options.debug) for i, (plan, store, _) in touched.items()}
    workers, contexts = _workers_and_contexts(experiments, work, options)
    executor = options.executor or ("serial" if workers == 1 else "processes")
    with contextlib.ExitStack() as stack:
        pool = None  # workers import torch while this process checks the experiments
        if executor == "processes" and workers is not None:
            pool = stack.enter_context(Processes(contexts, workers))
        warnings = _check(list(touched.values()))
        for plan, store, _ in touched.values():
            _describe(plan, store, workers, environment=True)
        if options.verbosity >= 0:
            for line in (*warnings, *_announcement(work, workers, contexts)):
                _note(line)
        bar = ProgressBar(sum(item.units for item in work), sum(len(item.cells) for item in work), options.verbosity)
        listener = _Listener(bar, live, experiments, hooks)
        try:
            for each in hooks.values():
                each.start(bar.say)
            if pool is not None:
                run_in_pool(pool, Queue(work), contexts, listener)
            elif executor == "ray":
                _run_on_ray(Queue(work), contexts, listener, options)
            else:
                run_serially(Queue(work), contexts, listener)
        finally:
            bar.close()
            results = {i: write_results_table(store, plan) for i, (plan, store, _) in touched.items()}
            for i, each in hooks.items():
                each.end(results[i])


def _workers_and_contexts(
    experiments: Sequence[_Experiment], work: Sequence[Work], options: Options
) -> tuple[int | None, list[Context]]:
    """The number of workers, None on a Ray cluster, whose size may change; and the context of every experiment."""
    machine = experiments[0].plan.machine
    resources = [resources_of(plan.file.parameters, machine) for plan, *_ in experiments]
    needed = [resources[i] for i in sorted({item.experiment for item in work})]
    workers = None
    if options.executor != "ray":
        workers = _num_workers(options, needed, machine, sum(item.pieces for item in work))
    cells = workers or max(1, usable_cores() // max(each.cpus for each in needed))
    shared: dict[Path, Any] = {}
    contexts = [
        Context(store, place, machine, plan.file.parameters.threads, each, options.retry_failed, options.crew, cells,
                shared)
        for (plan, store, place), each in zip(experiments, resources, strict=True)
    ]  # fmt: skip
    return workers, contexts


def _check(experiments: Sequence[_Experiment]) -> list[str]:
    """Check experiments before they run, and remember the facts about their data; returns warnings."""
    from experiment.run.preflight import check_before_running  # imports torch: only if there is work

    looks = [check_before_running(plan, place, plan.machine) for plan, _, place in experiments]
    problems = [problem for look in looks for problem in look.problems]
    if not problems:
        for plan, *_ in experiments:
            changes = [] if plan.stamps is None else plan.stamps.changes()
            problems += [f"{plan.file.where('network', 'dataset')}: network.dataset: {text}" for text in changes]
    if problems:
        raise ConfigError(problems)
    for (_, store, _), look in zip(experiments, looks, strict=True):
        remember_data(store.folder, data=look.data)
    warnings = [f"warning: {f.dataset}: {text}" for look in looks for f in look.data for text in f.warnings]
    return list(dict.fromkeys(warnings))


def _run_on_ray(queue: Queue, contexts: Sequence[Context], listener: _Listener, options: Options) -> None:
    try:
        from experiment.run.workers.ray_pool import run_on_ray  # an optional dependency
    except ImportError as error:
        raise ConfigError(
            f"--executor ray: Ray cannot be imported: {error}. Reinstall it, or use another executor."
        ) from error
    most = None if options.share is not None else options.workers
    run_on_ray(queue, contexts, listener, listener.bar.say if options.verbosity >= 0 else _ignore, most=most)


class _Listener:
    """Shows events, here and to `--status`, tells the hooks, and periodically rewrites the tables of the experiments.

    Args:
        hooks: by the index of their experiment.
    """

    def __init__(
        self, bar: ProgressBar, live: LiveFiles, experiments: Sequence[_Experiment], hooks: Mapping[int, HookCalls]
    ) -> None:
        self.bar, self._live, self._experiments, self._hooks = bar, live, experiments, hooks
        self._due = time.monotonic() + SECONDS_BETWEEN_TABLES

    def __call__(self, work: Work, event: Event) -> None:
        self.bar.show(event)
        self._live.show(work.experiment, work.name, event)
        self._hooks[work.experiment].note(work.name, event)
        started = time.monotonic()
        if isinstance(event, CellDone) and started >= self._due:
            plan, store, _ = self._experiments[work.experiment]
            write_results_table(store, plan)
            ended = time.monotonic()
            self._due = ended + max(SECONDS_BETWEEN_TABLES, TABLES_ASIDE * (ended - started))


def _announcement(work: Sequence[Work], workers: int | None, contexts: Sequence[Context]) -> Iterator[str]:
    machine, threads = contexts[0].machine, max(contexts[item.experiment].threads for item in work)
    workers_text = "Ray tasks" if workers is None else plural(workers, "worker")
    text = f"{plural(sum(len(item.cells) for item in work), 'cell')} to compute on {machine.device}"
    text += f", {workers_text} with {plural(threads, 'thread')}"
    yield text + (f", {machine.processes} processes train each network" if machine.processes > 1 else "")
    cores = usable_cores()
    if workers is not None and workers > 1 and machine.kind == "cpu" and workers * threads > cores:
        yield f"  {workers * threads} threads on {plural(cores, 'core')} slow each other down: use a smaller -j"


def _num_workers(options: Options, resources: Sequence[Resources], machine: Machine, pieces: int) -> int:
    """As many as requested, or as the cores or GPUs allow; not more than there are pieces of work."""
    if options.share is not None:
        return 1
    if machine.kind == "cuda":
        gpus = max(1, len(visible_gpus(machine)))
        possible = min(each.fit_gpus(gpus) for each in resources)
    else:
        possible = min(each.fit(usable_cores(), 0) for each in resources)
    return max(1, min(options.workers or possible, pieces))


def _describe(plan: ExperimentPlan, store: Store, workers: int | None = 1, *, environment: bool = False) -> None:
    """Write the parameters of an experiment, the facts about its data and, if it is missing, its environment.

    Args:
        environment: whether the environment is written in any case.
    """
    write_parameters(store.folder, plan.file, store.lock_file("parameters"))
    if plan.stamps is not None:
        remember_data(store.folder, stamps=plan.stamps.known())
    if environment or not _is_json(store.folder / ENVIRONMENT):
        content = describe_environment(plan.machine, plan.file.parameters.threads, workers)
        write_whole(store.folder / ENVIRONMENT, json_text(content, indent=1) + "\n")


def _is_json(path: Path) -> bool:
    try:
        return isinstance(read_json(path), dict)
    except (FileNotFoundError, StoreError):
        return False


def _note(text: str) -> None:
    say_line(text, sys.stderr)


def _ignore(text: str) -> None:
    pass
