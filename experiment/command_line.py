"""The arguments of the command, and which of them go together. Without torch: --help must be fast."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import NoReturn

from experiment.errors import ConfigError
from experiment.escaping import one_line
from experiment.run.torchrun_launch import Launch

EPILOG = """\
PARAM is looked up in the working directory, then among the packaged files in param/. Running the same command again
continues an interrupted run. Exit status: 0 all cells done, 1 some cells failed, 2 invalid call or parameter file,
130 interrupted. Example: python -m experiment.main param/digits/prune/lenet5.yaml
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def parser() -> argparse.ArgumentParser:
    """What `python -m experiment.main --help` describes."""
    made = _Parser(
        prog="python -m experiment.main",
        description="Run the compression experiments of parameter files and report their trade-offs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("param", nargs="*", metavar="PARAM", help="parameter file, for instance param/cifar/prune/resnet20.yaml")
    instead = made.add_mutually_exclusive_group().add_argument  # of a run
    instead(
        "--new", action="store_true", help="ask what is wanted (--set answers), write PARAM and a small twin, and exit"
    )
    instead("--plan", nargs="?", const="text", choices=("text", "json"), help="print what would run, and exit")
    instead(
        "--status", action="store_true", help="print what runs at present, when it may end and what failed, and exit"
    )
    instead("--schema", action="store_true", help="print the JSON schema of parameter files (for editors) and exit")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting: experiments.numNets=1")
    add(
        "--results",
        type=Path,
        metavar="DIR",
        help="results folder (default: data/results); trained networks stay in directories.trained_networks",
    )
    add("--data", type=Path, metavar="DIR", help="dataset folder (default: data/datasets)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto)")
    add(
        "-j",
        dest="jobs",
        type=int,
        metavar="N",
        help="number of worker processes (default: as many as cores or GPUs allow), or of jobs of Slurm",
    )
    add("-i", dest="share", type=int, metavar="K", help="with -j N: run share K (0 to N-1) of N, for job arrays")
    executors = ("serial", "processes", "ray", "slurm")
    add("--executor", choices=executors, help="where cells run (default: processes if N > 1)")
    add("--retry-failed", action="store_true", help="run failed cells again")
    add("-q", dest="quiet", action="store_true", help="print only errors and the paths of results")
    add("-v", dest="verbose", action="store_true", help="print one line per epoch")
    add("--debug", action="store_true", help="print tracebacks of errors, including failed cells")
    return made


def check_call(options: argparse.Namespace, launch: Launch | None) -> None:
    """Raises: ConfigError: an argument is missing, wrong, or cannot be used with another one or on this machine."""
    problems: list[str] = []
    try:
        Path.cwd()
    except FileNotFoundError:
        problems.append("the working directory has been removed. Change to another one.")
    if not options.param:
        problems.append("no parameter file given. Expected PARAM, for instance param/digits/prune/lenet5.yaml.")
    if options.jobs is not None and options.jobs < 1:
        problems.append(f"-j: must be at least 1. Got {options.jobs}.")
    if options.share is not None and (options.jobs is None or not 0 <= options.share < options.jobs):
        problems.append(f"-i: must be from 0 to N-1, with -j N. Got -i {options.share} -j {options.jobs}.")
    computes = not (options.plan or options.status)
    if computes and options.executor == "ray" and importlib.util.find_spec("ray") is None:
        problems.append("--executor ray: Ray is not installed. Use: python -m pip install 'experiment[ray]'")
    if computes and options.executor == "slurm":
        if importlib.util.find_spec("submitit") is None:
            problems.append(
                "--executor slurm: submitit is not installed. Use: python -m pip install 'experiment[slurm]'"
            )
        if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
            text = f"no {', '.join(missing)} on the PATH. Run this on a machine from which jobs are submitted."
            problems.append(f"--executor slurm: {text}")
        if options.share is not None:
            problems.append("-i: not with --executor slurm, which numbers the shares itself. Remove it.")
    if options.executor in ("ray", "slurm") and options.device.startswith("cuda:"):
        where = f"{options.executor.capitalize()} assigns GPUs itself"
        problems.append(f"--device {options.device}: {where}. Use --device cuda with --executor {options.executor}.")
    if launch is not None and ((options.jobs or 1) > 1 or options.executor not in (None, "serial")):
        problems.append(
            f"-j, --executor: not with torchrun, whose {launch.size} processes train one network at a time together. "
            "Remove them, or run the command without torchrun."
        )
    if problems:
        raise ConfigError(problems)
