"""The executor slurm: submits the shares of an experiment as an array of jobs, and follows them.

The jobs need nothing of the process that submits them: it may leave at any time, and the same command follows them.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.errors import ConfigError, plural
from experiment.escaping import json_text
from experiment.escaping import say as say_line
from experiment.files import make_folder, write_whole
from experiment.run.disk.results_table import write_results_table
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.hardware import Machine, resources_of
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.status import status_text
from experiment.run.summary import WrittenReport, summarise
from experiment.run.workers.queue import open_work
from experiment.run.workers.slurm_share import ARRAY, LOGS, Share, last_array

MOST_JOBS = 16  # unless -j says more
MOST_TIMEOUTS = 20  # of a job, so that one whose first epoch does not fit in its time ends
SECONDS_TO_SAVE = 90  # before the time limit
SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_TO_ANSWER = 60.0  # for squeue


@dataclass(frozen=True)
class Command:
    """The command whose shares are jobs.

    Attributes:
        arguments: of the command line, without the parameter file, -j and -i.
        jobs: number of shares; None for one per chain of cells, at most `MOST_JOBS`.
    """

    arguments: tuple[str, ...]
    jobs: int | None = None
    retry_failed: bool = False
    quiet: bool = False
    debug: bool = False


def run_on_slurm(
    plans: Sequence[ExperimentPlan],
    directories: Sequence[Directories],
    command: Command,
    plan_again: Callable[[], Sequence[ExperimentPlan]],
    write_report: Callable[[Path], WrittenReport],
    say: Callable[[str], None],
) -> int:
    """Submit the open work of every experiment, follow the jobs to their end, and write tables and reports.

    Args:
        plan_again: keys depend on the kind of GPU, which is known when the first job has begun.
    Returns: the exit status.
    Raises: ConfigError: a problem that would make every cell fail, or Slurm refuses the jobs.
    """

    def note(text: str) -> None:
        if not command.quiet:
            say_line(text, sys.stderr)

    _check(plans, directories)
    stores = [Store(place.results / plan.name) for plan, place in zip(plans, directories, strict=True)]
    arrays = [_submit(plan, store, command, note) for plan, store in zip(plans, stores, strict=True)]
    if waited := [array for array in arrays if array is not None]:
        note("Ctrl-C leaves the jobs running; the same command follows them again")
        _follow(",".join(waited), lambda: zip(plan_again(), stores, strict=True), note)
        plans = plan_again()
    complete = [_finish(plan, store, command, write_report, say) for plan, store in zip(plans, stores, strict=True)]
    return 0 if all(complete) else 1


def _check(plans: Sequence[ExperimentPlan], directories: Sequence[Directories]) -> None:
    """Look for errors here, before every job finds them."""
    from experiment.run.preflight import check_before_running  # imports torch

    pairs = zip(plans, directories, strict=True)
    problems = [text for plan, place in pairs for text in check_before_running(plan, place, Machine("cpu")).problems]
    if problems:
        raise ConfigError(problems)


def _submit(plan: ExperimentPlan, store: Store, command: Command, note: Callable[[str], None]) -> str | None:
    """Submit the shares that have open work, unless the jobs of an earlier call are in the queue.

    Returns: the id of their array, None if no work is open.
    """
    logs = store.folder / LOGS
    earlier = last_array(store.folder)
    if earlier is not None and _states(earlier):
        note(f"{plan.name}: following job {earlier}, which an earlier call submitted")
        return earlier
    found, number = store.results(plan.computed), command.jobs or min(MOST_JOBS, len(plan.chains or plan.references))
    again = command.retry_failed
    shares = [k for k in range(number) if open_work(0, plan, found, retry_failed=again, share=(k, number))]
    if not shares:
        return None
    make_folder(logs)
    executor = _executor(logs, plan)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the error, too
            jobs = executor.map_array(Share((str(plan.file.path), *command.arguments), number), shares)
    except RuntimeError as error:
        said = "; ".join(str(error).split("\n")[-2:]).strip("; ") or "no reason given"  # the last lines say why
        raise ConfigError(
            f"--executor slurm: no jobs were submitted ({said}). Use a machine that may submit jobs, and set `slurm` "
            "in the parameter file, or with --set."
        ) from error
    array = str(jobs[0].job_id).partition("_")[0]
    write_whole(logs / ARRAY, json_text({"format": 1, "array": array}) + "\n")
    each = resources_of(plan.file.parameters, plan.machine)
    size = plural(each.cpus, "core") + (" and a GPU" if each.gpus else "")
    note(f"{plan.name}: submitted job {array}: {plural(len(jobs), 'share')} with {size} each, logs in {logs}")
    return array


def _follow(
    arrays: str, look: Callable[[], Iterable[tuple[ExperimentPlan, Store]]], note: Callable[[str], None]
) -> None:
    """Say how many jobs run and, as --status does, how many cells are done, until all jobs have ended."""
    said = ""
    while (states := _states(arrays)) is None or states:
        if states:
            jobs = ", ".join(f"{number} {state}" for state, number in sorted(Counter(states).items()))
            cells = [
                next(iter(status_text(plan, store.results(plan.computed, repair=False), store.folder)))
                for plan, store in look()
            ]
            text = "; ".join([*cells, f"jobs: {jobs}"])
            if text != said:
                note(text)
            said = text
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _finish(
    plan: ExperimentPlan,
    store: Store,
    command: Command,
    write_report: Callable[[Path], WrittenReport],
    say: Callable[[str], None],
) -> bool:
    """Write the table and the report of what the jobs computed; returns whether no cell failed or is open."""
    found = write_results_table(store, plan)
    summarise(plan, found, store, write_report(store.folder), say, debug=command.debug)
    if any(cell.key not in found for cell in plan.computed):
        say(f"  jobs ended before their work was done: see {store.folder / LOGS}; the same command continues")
    return not open_work(0, plan, found, retry_failed=True)


def _executor(logs: Path, plan: ExperimentPlan) -> Any:
    """Submits jobs of the size of a cell with the options of the parameter file."""
    import submitit

    slurm, each = plan.file.parameters.slurm, resources_of(plan.file.parameters, plan.machine)
    executor = submitit.SlurmExecutor(logs.absolute(), max_num_timeout=MOST_TIMEOUTS)
    executor.update_parameters(
        job_name=plan.name, time=slurm.time, partition=slurm.partition, account=slurm.account, setup=slurm.setup,
        mem=None if slurm.memory is None else f"{round(1024 * slurm.memory)}M", cpus_per_task=each.cpus,
        gpus_per_node=1 if each.gpus else None, signal_delay_s=SECONDS_TO_SAVE, stderr_to_stdout=True,
        srun_args=[f"--cpus-per-task={each.cpus}"],  # which srun does not take from sbatch
        additional_parameters={"requeue": True} | {k: v for k, v in slurm.options.items() if v is not False},
    )  # fmt: skip
    return executor


def _states(arrays: str) -> list[str] | None:
    """The states of the jobs that have not ended, with what they wait for; None if Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%T (%r)", f"--jobs={arrays}"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if said.returncode == 0:
        return [line.removesuffix(" (None)").lower() for line in said.stdout.splitlines()]
    return [] if "Invalid job id" in said.stderr else None  # it forgets jobs some minutes after their end
