"""One call of the command: experiments made ready, their open work done, their tables and reports written."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from experiment.errors import ConfigError, StoreError
from experiment.escaping import json_text
from experiment.escaping import say as say_line
from experiment.files import read_json, write_whole
from experiment.run.cell.events import CellDone, Event
from experiment.run.disk.parameters_file import write_parameters
from experiment.run.disk.results_table import write_results_table
from experiment.run.disk.store import TRACEBACK, Directories, Store
from experiment.run.grid.data_facts import remember_data
from experiment.run.grid.plan import ExperimentPlan, Machine
from experiment.run.grid.resources import Resources, resources_of
from experiment.run.machine import describe_environment, usable_cores, visible_gpus
from experiment.run.measure_deployed import measure_deployed
from experiment.run.workers.pool import Listener, run_serially
from experiment.run.workers.processes import Processes
from experiment.run.workers.progress_bar import Show
from experiment.run.workers.queue import Queue, Work, open_work
from experiment.run.workers.setup import Setup, Site

if TYPE_CHECKING:  # torch comes with it
    from experiment.run.cell.torchrun_group import Crew

SECONDS_BETWEEN_TABLES = 2.0  # at least, and so many times what the last one took
TABLES_ASIDE = 20
ENVIRONMENT = "environment.json"

Results = Mapping[str, Mapping[str, Any]]


class Report(Protocol):
    """Where a written report lies; writing it is the business of `experiment.report`, which stands above this."""

    @property
    def markdown(self) -> Path: ...

    @property
    def html(self) -> Path: ...

    @property
    def main_plots(self) -> Sequence[Path]: ...


@dataclass(frozen=True)
class Options:
    """How to run: what the command line says beside the parameter files.

    Attributes:
        workers: processes on this machine (or tasks of Ray), None for as many as the cores (or GPUs) bear.
        share: (K, N) of a job array, else None.
        executor: serial, processes or ray; None to choose one of the first two by the number of workers.
        crew: the processes that take part in every training, where there are any; then there is one worker.
        debug: whether the tracebacks of failed cells are printed.
    """

    workers: int | None = None
    share: tuple[int, int] | None = None
    executor: str | None = None
    retry_failed: bool = False
    verbosity: int = 0
    crew: Crew | None = None
    debug: bool = False


def run_session(
    plans: Sequence[ExperimentPlan],
    directories: Sequence[Directories],
    options: Options,
    write_report: Callable[[Path], Report],
    say: Callable[[str], None],
) -> int:
    """Do what is left to do of every experiment, and leave table and report of each; returns the exit status.

    Raises: ConfigError: something that no cell could survive is wrong (an unknown name, missing data).
    """
    stores = [Store(place.results / plan.name) for plan, place in zip(plans, directories, strict=True)]
    results = [store.results(plan.computed) for plan, store in zip(plans, stores, strict=True)]
    work = [
        w
        for i, (plan, found) in enumerate(zip(plans, results, strict=True))
        for w in open_work(i, plan, found, retry_failed=options.retry_failed, share=options.share)
    ]
    if work:
        _compute(plans, stores, directories, work, options)
    undone = False
    for i, (plan, store) in enumerate(zip(plans, stores, strict=True)):
        write_parameters(store.folder, plan.file, store.lock_file("parameters"))
        _remember_data(plan, store)
        if not _is_json(store.folder / ENVIRONMENT):  # or no report can be written, and nothing else would mend it
            _describe(plan, store, 1)
        found = write_results_table(store, plan)
        hear = _note if options.verbosity >= 0 else _silent
        last = options.share is None or not open_work(i, plan, found, retry_failed=False, share=None)
        if last and measure_deployed(plan, store, found, hear):  # what is measured is compared: all on one machine
            found = write_results_table(store, plan)
        report = write_report(store.folder)
        _tell(plan, found, store.folder / "results.csv", report, say, debug=options.debug)
        undone = undone or bool(open_work(i, plan, found, retry_failed=True, share=options.share))
    return 1 if undone else 0


def _compute(
    plans: Sequence[ExperimentPlan],
    stores: Sequence[Store],
    directories: Sequence[Directories],
    work: list[Work],
    options: Options,
) -> None:
    machine = plans[0].machine
    touched = sorted({item.experiment for item in work})
    resources = [resources_of(plan.file.parameters, machine) for plan in plans]
    sites = tuple(
        Site(store.folder, place, plan.file.parameters.threads, each)
        for plan, store, place, each in zip(plans, stores, directories, resources, strict=True)
    )
    workers = None  # as many as a cluster bears, which may change on the way
    if options.executor != "ray":
        workers = _num_workers(options, [resources[i] for i in touched], machine, sum(item.pieces for item in work))
    cells = workers or max(1, usable_cores() // max(resources[i].cpus for i in touched))  # Ray's nodes: as this one
    setup = Setup(sites, machine, options.retry_failed, options.crew, cells)
    serial = (options.executor or ("processes" if workers and workers > 1 else "serial")) == "serial"
    with contextlib.ExitStack() as hired:
        pool = None if serial or workers is None else hired.enter_context(Processes(setup, workers))
        from experiment.run.preflight import look_before_running  # torch comes with it: only if there is work

        looks = {i: look_before_running(plans[i], directories[i], machine) for i in touched}
        problems = [p for look in looks.values() for p in look.problems]
        problems = problems or [p for i in touched for p in _changed_data(plans[i])]
        if problems:
            raise ConfigError(problems)
        for i in touched:
            _describe(plans[i], stores[i], workers)
            remember_data(stores[i].folder, data=looks[i].data)
        if options.verbosity >= 0:
            found = (f"{f.dataset}: {text}" for look in looks.values() for f in look.data for text in f.warnings)
            for line in dict.fromkeys(found):
                _note(f"warning: {line}")
            for line in _announcement(work, workers, setup):
                _note(line)
        show = Show(sum(item.units for item in work), sum(len(item.cells) for item in work), options.verbosity)
        listen = _listener(show, _Tables(plans, stores))
        try:
            if serial:
                run_serially(Queue(work), setup, listen)
            else:
                _run_by_others(Queue(work), setup, pool, options, listen, show)
        finally:
            show.close()
            for i in touched:
                write_results_table(stores[i], plans[i])


def _run_by_others(
    queue: Queue, setup: Setup, pool: Processes | None, options: Options, listen: Listener, show: Show
) -> None:
    """Have the work done by worker processes, or by a cluster."""
    if pool is not None:
        pool.run(queue, listen)
    else:
        try:
            from experiment.run.workers.ray_pool import run_on_ray  # Ray is there only for those who ask for it
        except ImportError as error:
            raise ConfigError(
                f"--executor ray: Ray cannot be imported: {error}. Install it anew, or leave this out."
            ) from error

        most = None if options.share is not None else options.workers
        run_on_ray(queue, setup, listen, show.say if options.verbosity >= 0 else _silent, most=most)


def _listener(show: Show, tables: _Tables) -> Listener:
    def listen(item: Work, event: Event) -> None:
        show(item, event)
        if isinstance(event, CellDone):
            tables.renew(item.experiment)

    return listen


class _Tables:
    """The tables of the experiments, rewritten now and then while cells finish."""

    def __init__(self, plans: Sequence[ExperimentPlan], stores: Sequence[Store]) -> None:
        self._plans, self._stores = plans, stores
        self._due = time.monotonic() + SECONDS_BETWEEN_TABLES

    def renew(self, experiment: int) -> None:
        """Write the table of one experiment, if it is time."""
        started = time.monotonic()
        if started < self._due:
            return
        write_results_table(self._stores[experiment], self._plans[experiment])
        ended = time.monotonic()
        self._due = ended + max(SECONDS_BETWEEN_TABLES, TABLES_ASIDE * (ended - started))


def _announcement(work: Sequence[Work], workers: int | None, setup: Setup) -> Iterator[str]:
    threads = max(setup.sites[item.experiment].threads for item in work)
    how = "Ray tasks" if workers is None else _plural(workers, "worker")
    how += f" of {_plural(threads, 'thread')}"
    if setup.machine.processes > 1:
        how += f", {setup.machine.processes} processes train each network"
    yield f"{_plural(sum(len(item.cells) for item in work), 'cell')} to compute on {setup.machine.device}, {how}"
    cores = usable_cores()
    if workers is not None and workers > 1 and setup.machine.kind == "cpu" and workers * threads > cores:
        yield f"  {workers * threads} threads on {_plural(cores, 'core')} slow each other down: a smaller -j is faster"


def _num_workers(options: Options, resources: Sequence[Resources], machine: Machine, pieces: int) -> int:
    """As many as asked for, else as the cores (or GPUs) bear; never more than there is work."""
    if options.share is not None:
        return 1
    if machine.kind == "cuda":
        gpus = max(1, len(visible_gpus(machine)))
        bearable = min(each.fit_gpus(gpus) for each in resources)
    else:
        bearable = min(each.fit(usable_cores(), 0) for each in resources)
    return max(1, min(options.workers or bearable, pieces))


def _changed_data(plan: ExperimentPlan) -> list[str]:
    where = plan.file.where("network", "dataset")
    return [] if plan.stamps is None else [f"{where}: network.dataset: {text}" for text in plan.stamps.changes()]


def _describe(plan: ExperimentPlan, store: Store, workers: int | None) -> None:
    """Leave beside the results what was asked for and where it is computed."""
    write_parameters(store.folder, plan.file, store.lock_file("parameters"))
    _remember_data(plan, store)
    environment = describe_environment(plan.machine, plan.file.parameters.threads, workers)
    write_whole(store.folder / ENVIRONMENT, json_text(environment, indent=1) + "\n")


def _remember_data(plan: ExperimentPlan, store: Store) -> None:
    if plan.stamps is not None:
        remember_data(store.folder, stamps=plan.stamps.known())


def _is_json(path: Path) -> bool:
    """Whether a file is there and whole."""
    try:
        return isinstance(read_json(path), dict)
    except (OSError, StoreError):
        return False


def _tell(
    plan: ExperimentPlan, found: Results, table: Path, report: Report, say: Callable[[str], None], *, debug: bool
) -> None:
    """Say where everything is and what went wrong."""
    status = Counter(str(found[cell.key]["status"]) if cell.key in found else "pending" for cell in plan.cells)
    say(f"{plan.name}: " + ", ".join(f"{number} {name}" for name, number in sorted(status.items())) + " cells")
    if without := _without_ranks(plan, found, Store(table.parent)):
        say(f"  {_plural(without, 'cell')} without ranks.csv: computed before measure: [rank] was asked for, and kept")
    tracebacks = Store(table.parent).cell_folders() if status["failed"] else {}
    for cell in plan.cells:
        if found.get(cell.key, {}).get("status") == "failed":
            say(f"  failed: {cell.label} net {cell.net} {cell.size}: {found[cell.key].get('error')}")
            for line in _traceback(tracebacks.get(cell.key), debug):
                say(f"    {line}")
    if status["failed"]:
        say("  run it again with --retry-failed once the cause is mended")
    say(f"  results   {_shown(table)}")
    say(f"  report    {_shown(report.markdown)}, {_shown(report.html)}")
    for plot in report.main_plots:
        say(f"  plot      {_shown(plot)}")


def _traceback(folder: Path | None, debug: bool) -> Iterator[str]:
    """Where the traceback of a failed cell is, and its lines if `debug`; nothing where there is none."""
    path = None if folder is None else folder / TRACEBACK
    if path is not None and path.is_file():
        yield f"traceback: {_shown(path)}"
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines() if debug else ()


def _without_ranks(plan: ExperimentPlan, found: Results, store: Store) -> int:
    """How many finished cells have no ranks although the file asks for them."""
    asking = {v.name for v in plan.file.variants if "rank" in v.parameters.experiments.measure}
    done = [c for c in plan.cells if c.variant in asking and found.get(c.key, {}).get("status") == "done"]
    folders = store.cell_folders() if done else {}
    return sum(not (folders[cell.key] / "ranks.csv").is_file() for cell in done if cell.key in folders)


def _note(text: str) -> None:
    """Progress, beside the results."""
    say_line(text, sys.stderr)


def _silent(text: str) -> None:
    """Says nothing."""


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
