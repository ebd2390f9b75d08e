"""The command line: python -m experiment.main PARAM [PARAM ...]"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiment.command_line import check_call, parser
from experiment.errors import ConfigError, ExperimentError, StoreError
from experiment.escaping import json_text, message, say
from experiment.progress import is_watched
from experiment.run.signals import EXIT_INTERRUPTED, stopping_cleanly
from experiment.run.torchrun_launch import Launch, find_launch
from experiment.standard_streams import log_to_stderr, require_streams

if TYPE_CHECKING:  # imported where they are used: --help must be fast, --plan must not need torch
    from experiment.config import ParameterFile
    from experiment.config.value_tree import KeyPath
    from experiment.run.cell.torchrun_group import Crew
    from experiment.run.disk.store import Directories
    from experiment.run.grid.plan import ExperimentPlan

EXIT_DONE, EXIT_FAILED, EXIT_WRONG = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Only ExperimentError becomes a message. Any other exception is a bug and is raised.
    """
    require_streams()
    options = parser().parse_args(arguments)
    launch = find_launch()
    if launch is not None:  # or DDP warns in each process and training that all parameters are used
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    quiet = options.quiet or (launch is not None and not launch.leads)
    log_to_stderr(logging.ERROR if quiet else logging.WARNING)
    try:
        computes_here = not (options.new or options.executor == "slurm" or (launch and not launch.leads))
        with stopping_cleanly() if computes_here else contextlib.nullcontext():
            return _schema() if options.schema else _new(options) if options.new else _run(options, launch)
    except ExperimentError as error:
        if options.debug:
            traceback.print_exc()
        lines = error.problems if isinstance(error, ConfigError) else (str(error),)
        for line in lines:
            say(message(line), sys.stderr)
        return EXIT_WRONG
    except KeyboardInterrupt:
        kept = "finished cells and the last finished epoch of every running training are kept; the same command "
        kept = "no file was written" if options.new else f"{kept}continues from here"
        jobs = "jobs that were submitted go on; the same command follows them, --status shows them, scancel ends them"
        say(f"interrupted: {jobs if options.executor == 'slurm' else kept}", sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `... --plan | head`: the reader has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE if options.plan or options.status or options.schema else EXIT_INTERRUPTED


def run() -> NoReturn:
    """Run the command and end the process with its exit status, also after an interruption."""
    status = main()
    if status == EXIT_INTERRUPTED:
        # Python would end by SIGINT if the interruption met code that is run from text, as in torch's imports
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _schema() -> int:
    from experiment.config import json_schema

    for line in json_text(json_schema(), indent=2).splitlines():
        say(line)
    return EXIT_DONE


def _new(options: argparse.Namespace) -> int:
    """Write a parameter file."""
    from experiment.run.machine import find_machine
    from experiment.start.new_experiment import Call, write_new

    path, *others = options.param or [None]
    if others:
        raise ConfigError(f"--new: expected one PARAM to write. Got {len(options.param)}.")
    write_new(Call(path, options.set, options.data, find_machine(options.device)))
    return EXIT_DONE


def _run(options: argparse.Namespace, launch: Launch | None) -> int:
    try:
        check_call(options, launch)
        looking = options.plan or options.status
        plans = _plans(options, reading=not looking and (launch is None or launch.leads))
    except ConfigError as error:
        if launch is None:
            raise
        return _report_once(error, launch)
    if launch is not None and not launch.leads:
        from experiment.run.workers.torchrun_worker import serve

        return EXIT_DONE if looking else serve(plans[0].machine)
    places = [_directories(plan.file, options) for plan in plans]
    _require_own_folders(plans, places)
    for notice in dict.fromkeys(notice for plan in plans for notice in plan.file.notices):
        say(notice, sys.stderr)
    if looking:
        return _show(plans, places, options)
    if options.executor == "slurm":
        return _run_on_slurm(plans, places, options)
    if not options.quiet and is_watched():
        say("starting: importing torch takes a few seconds", sys.stderr)
    from experiment.report import write_report
    from experiment.run.run_experiments import Options, run_session

    how = Options(
        workers=options.jobs,
        share=None if options.share is None else (options.share, options.jobs),
        executor=options.executor,
        retry_failed=options.retry_failed,
        verbosity=-1 if options.quiet else int(options.verbose),
        debug=options.debug,
    )
    if launch is None:
        return run_session(plans, places, how, write_report, say)
    from experiment.run.cell.torchrun_group import lead

    def session(crew: Crew) -> int:
        return run_session(plans, places, replace(how, workers=1, crew=crew), write_report, say)

    return lead(plans[0].machine, session)


def _run_on_slurm(plans: Sequence[ExperimentPlan], places: Sequence[Directories], options: argparse.Namespace) -> int:
    from experiment.report import write_report
    from experiment.run.slurm import Command, run_on_slurm

    given = (("--results", options.results), ("--data", options.data), ("--device", plans[0].machine.kind))
    flags = (("--retry-failed", options.retry_failed), ("-q", options.quiet), ("-v", options.verbose))
    command = Command(
        (*(f"--set={value}" for value in options.set), *(f"{name}={value}" for name, value in given if value),
         *(name for name, is_set in flags if is_set)),
        options.jobs, options.retry_failed, options.quiet, options.debug,
    )  # fmt: skip
    return run_on_slurm(plans, places, command, lambda: _plans(options, reading=False), write_report, say)


def _report_once(error: ConfigError, launch: Launch) -> int:
    """Report an error that all processes found, once per machine, before torchrun sees the first of them end."""
    from experiment.run.cell.torchrun_group import wait_for_all

    if launch.speaks:
        for problem in error.problems:
            say(message(problem), sys.stderr)
    wait_for_all()
    return EXIT_WRONG


def _plans(options: argparse.Namespace, reading: bool) -> list[ExperimentPlan]:
    """The grids of all files."""
    from experiment.config import load
    from experiment.run.grid.hardware import Machine
    from experiment.run.grid.methods import file_faults
    from experiment.run.grid.plan import plan_experiment
    from experiment.run.machine import find_machine, recorded_machine

    def also(values: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
        return [(fault.key, fault.text) for fault in file_faults(values, options.data)]

    seen = options.status and options.device == "auto"  # by default as where it runs, without torch
    slurm = options.executor == "slurm"
    if slurm and options.device == "cuda":
        machine = Machine("cuda", auto="bf16")  # as GPUs since Ampere, until the first job has recorded its own
    else:
        machine = find_machine("cpu" if seen or (slurm and options.device == "auto") else options.device)
    plans: list[ExperimentPlan] = []
    problems: list[str] = []
    for path in options.param:
        try:
            file = load(path, options.set, also=also)
            plan = plan_experiment(file, machine, datasets=options.data, results=options.results, reading=reading)
            other = recorded_machine(file.results(options.results) / plan.name) if seen or slurm else None
            if other not in (None, machine) and (seen or other.kind == machine.kind):
                plan = plan_experiment(file, other, datasets=options.data, results=options.results)
            plans.append(plan)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return plans


def _directories(file: ParameterFile, options: argparse.Namespace) -> Directories:
    """From the command line, else from the file, else the defaults."""
    from experiment.run.disk.store import Directories
    from experiment.run.grid.weights_file import datasets_folder

    given = file.parameters.directories
    return Directories(
        results=file.results(options.results),
        trained_networks=Path(given.trained_networks or "data/trained_networks"),
        datasets=datasets_folder(file.values, options.data),
    )


def _require_own_folders(plans: Sequence[ExperimentPlan], places: Sequence[Directories]) -> None:
    """Raises: ConfigError: the results folder of a file belongs to another one, in this call or from an earlier one."""
    from experiment.run.disk.parameters_file import require_own

    problems = []
    folders: dict[Path, Path] = {}
    for plan, place in zip(plans, places, strict=True):
        folder, path = (place.results / plan.name).resolve(), plan.file.path
        other = folders.setdefault(folder, path)
        if not other.samefile(path):
            problems.append(f"{path}: its results would be in {folder}, like those of {other}. Rename one of them.")
        try:
            require_own(folder, path)
        except StoreError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)


def _show(plans: Sequence[ExperimentPlan], places: Sequence[Directories], options: argparse.Namespace) -> int:
    """Print what would run, or what runs at present."""
    from experiment.run.disk.store import Store
    from experiment.run.grid.listing import plan_json, plan_text
    from experiment.run.status import status_text

    for plan, place in zip(plans, places, strict=True):
        folder = place.results / plan.name
        results = Store(folder).results(plan.computed, repair=False)
        lines = plan_json(plan, results) if options.plan == "json" else plan_text(plan, results, place.trained_networks)
        for line in status_text(plan, results, folder) if options.status else lines:
            say(line)
    return EXIT_DONE


if __name__ == "__main__":
    run()
