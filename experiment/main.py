"""The command line: python -m experiment.main PARAM [PARAM ...]"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from experiment.errors import ConfigError, ExperimentError, StoreError
from experiment.escaping import json_text, message, one_line, say
from experiment.progress import is_watched
from experiment.run.signals import EXIT_INTERRUPTED, stopping_cleanly
from experiment.run.torchrun_launch import Launch, find_launch

if TYPE_CHECKING:  # imported where they are used: --help must be quick, --plan must not need torch
    from experiment.config import ParameterFile
    from experiment.run.cell.torchrun_group import Crew
    from experiment.run.disk.store import Directories
    from experiment.run.grid.plan import ExperimentPlan, Machine

EXIT_DONE, EXIT_FAILED, EXIT_WRONG = 0, 1, 2

EPILOG = """\
PARAM is looked up from the working directory, then among the packaged files under param/. The same command again
continues where it stopped. Exit status: 0 all cells done, 1 some cells failed, 2 the call or the file is wrong,
130 interrupted. Example: python -m experiment.main param/digits/prune/lenet5.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Only deliberate errors become messages. Whatever else is raised is a mistake in a program, and shows its traceback.
    """
    _require_streams()
    options = _parser().parse_args(arguments)
    launch = find_launch()
    if launch is not None:  # DDP tells each process of each training that all parameters are used
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    quiet = options.quiet or (launch is not None and not launch.leads)
    _log_lines(logging.ERROR if quiet else logging.WARNING)
    try:
        with contextlib.nullcontext() if launch is not None and not launch.leads else stopping_cleanly():
            return _schema() if options.schema else _run(options, launch)
    except ExperimentError as error:
        if options.debug:
            traceback.print_exc()
        lines = error.problems if isinstance(error, ConfigError) else (str(error),)
        for line in lines:
            say(message(line), sys.stderr)
        return EXIT_WRONG
    except KeyboardInterrupt:
        last = "last checkpoint" if options.executor == "ray" else "last finished epoch"
        kept = f"finished cells and the {last} of every training under way are kept"
        say(f"interrupted: {kept}; the same command continues from here", sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `... --plan | head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE if options.plan or options.schema else EXIT_INTERRUPTED


def _require_streams() -> None:
    """Have all three standard streams, and none that refuses a character.

    Where one was closed (`2>&-`) the next file that is opened would take its number, and get what is printed.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Lines(logging.Formatter):
    """A line a message, whatever is in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))


def _log_lines(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(message)s"))
    logging.basicConfig(handlers=[handler], level=level)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def run() -> NoReturn:
    """The process of the command: its exit status is that of `main`, an interruption included."""
    status = main()
    if status == EXIT_INTERRUPTED:
        # Python itself would end by SIGINT where the interruption met code that is run from text, as in torch's imports
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiment.main",
        description="Run the prune-retrain experiments that parameter files describe, and report their trade-offs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("param", nargs="*", metavar="PARAM", help="a parameter file, such as param/cifar/prune/resnet20.yaml")
    add("--plan", nargs="?", const="text", choices=("text", "json"), help="say what would run or has run, and stop")
    add("--schema", action="store_true", help="print the JSON schema of parameter files, for editors, and stop")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting: training.numEpochs=2")
    add("--results", type=Path, metavar="DIR", help="where results go (default: data/results)")
    add("--data", type=Path, metavar="DIR", help="where datasets lie (default: data/datasets)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("-j", dest="jobs", type=int, metavar="N", help="worker processes (default: as many as cores or GPUs bear)")
    add("-i", dest="share", type=int, metavar="K", help="with -j N: do share K (0 to N-1) of N, for job arrays")
    add("--executor", choices=("serial", "processes", "ray"), help="where cells run (default: processes if N > 1)")
    add("--retry-failed", action="store_true", help="run again what failed before")
    add("-q", dest="quiet", action="store_true", help="say nothing but errors and where the results are")
    add("-v", dest="verbose", action="store_true", help="say more: a line an epoch")
    add("--debug", action="store_true", help="print the traceback of every error, those of failed cells too")
    return parser


def _schema() -> int:
    from experiment.config import json_schema

    for line in json_text(json_schema(), indent=2).splitlines():
        say(line)
    return EXIT_DONE


def _run(options: argparse.Namespace, launch: Launch | None) -> int:
    try:
        _check_call(options, launch)
        plans = _plans(options, reading=not options.plan and (launch is None or launch.leads))
    except ConfigError as error:
        if launch is None:
            raise
        return _all_wrong(error, launch)
    if launch is not None and not launch.leads:
        return _serve(plans[0].machine, options)
    places = [_directories(plan.file, options) for plan in plans]
    _require_own_folders(plans, places)
    if options.plan:
        return _show_plans(plans, places, options.plan)
    for notice in dict.fromkeys(notice for plan in plans for notice in plan.file.notices):
        say(notice, sys.stderr)
    if not options.quiet and is_watched():
        say("starting: torch is imported, which takes a few seconds", sys.stderr)
    from experiment.report import write_report
    from experiment.run.session import Options, run_session

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


def _all_wrong(error: ConfigError, launch: Launch) -> int:
    """Every process has found this; one a machine tells it, before torchrun sees the first of them end."""
    from experiment.run.cell.torchrun_group import wait_for_all

    if launch.speaks:
        for problem in error.problems:
            say(message(problem), sys.stderr)
    wait_for_all()
    return EXIT_WRONG


def _serve(machine: Machine, options: argparse.Namespace) -> int:
    """What is left to do where another process runs the experiment: train along."""
    if options.plan:
        return EXIT_DONE
    from experiment.run.workers.torchrun_worker import serve

    return serve(machine)


def _check_call(options: argparse.Namespace, launch: Launch | None) -> None:
    problems: list[str] = []
    try:
        Path.cwd()
    except FileNotFoundError:
        problems.append("the working directory has been removed. Change to one that is there.")
    if not options.param:
        problems.append("no parameter file given. Expected PARAM, such as param/digits/prune/lenet5.yaml.")
    if options.jobs is not None and options.jobs < 1:
        problems.append(f"-j: must be at least 1. Got {options.jobs}.")
    if options.share is not None and (options.jobs is None or not 0 <= options.share < options.jobs):
        problems.append(f"-i: must be from 0 to N-1 and come with -j N. Got -i {options.share} -j {options.jobs}.")
    if options.executor == "ray" and importlib.util.find_spec("ray") is None:
        problems.append("--executor ray: Ray is not installed. Use: python -m pip install 'experiment[ray]'")
    if options.executor == "ray" and options.device.startswith("cuda:"):
        problems.append(f"--device {options.device}: Ray hands out GPUs itself. Use --device cuda with --executor ray.")
    if launch is not None and ((options.jobs or 1) > 1 or options.executor not in (None, "serial")):
        problems.append(
            f"-j, --executor: torchrun's {launch.size} processes train each network together, one network at a time. "
            "Leave both out, or start the command without torchrun."
        )
    if problems:
        raise ConfigError(problems)


def _plans(options: argparse.Namespace, reading: bool) -> list[ExperimentPlan]:
    """The grids of all files; the errors of all files come together."""
    from experiment.config import load
    from experiment.run.grid.lookup import name_faults
    from experiment.run.grid.plan import plan_experiment
    from experiment.run.machine import find_machine

    machine = find_machine(options.device)
    plans: list[ExperimentPlan] = []
    problems: list[str] = []
    for path in options.param:
        try:
            file = load(
                path, options.set, also=lambda values: ((f.key, f.text) for f in name_faults(values, options.data))
            )
            base = _without_overrides(path) if options.set else None
            plans.append(
                plan_experiment(
                    file, machine, base=base, datasets=options.data, results=options.results, reading=reading
                )
            )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return plans


def _without_overrides(path: str) -> ParameterFile | None:
    """The file as it stands, or None where only the overrides make it valid."""
    from experiment.config import load

    try:
        return load(path)
    except ConfigError:
        return None


def _directories(file: ParameterFile, options: argparse.Namespace) -> Directories:
    """The command line before the file before the defaults."""
    from experiment.run.disk.store import Directories

    given = file.parameters.directories
    return Directories(
        results=file.results(options.results),
        trained_networks=Path(given.trained_networks or "data/trained_networks"),
        datasets=options.data or Path(given.training_data or "data/datasets"),
    )


def _require_own_folders(plans: Sequence[ExperimentPlan], places: Sequence[Directories]) -> None:
    """Raises: ConfigError: the folder of an experiment is that of another parameter file, of this call or before."""
    from experiment.run.disk.parameters_file import require_own

    problems = []
    folders: dict[Path, Path] = {}
    for plan, place in zip(plans, places, strict=True):
        folder, path = (place.results / plan.name).resolve(), plan.file.path
        other = folders.setdefault(folder, path)
        if not other.samefile(path):
            problems.append(f"{path}: its results would lie in {folder}, as those of {other}. Rename one of them.")
        try:
            require_own(folder, path)
        except StoreError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)


def _show_plans(plans: Sequence[ExperimentPlan], places: Sequence[Directories], form: str) -> int:
    from experiment.run.disk.store import Store
    from experiment.run.grid.listing import plan_json, plan_text

    show = plan_json if form == "json" else plan_text
    for plan, place in zip(plans, places, strict=True):
        for line in show(plan, Store(place.results / plan.name).results(plan.computed, repair=False)):
            say(line)
    return EXIT_DONE


if __name__ == "__main__":
    run()
