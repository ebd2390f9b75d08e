"""Run shares of one command (`-j N -i K`, as job arrays do) so that they end together, and look at what they leave.

    python tests/benchmark/shares.py --rounds 20
    python tests/benchmark/shares.py --delays 0 1 2 3 4

Rounds: two to four shares are started at once, each with one method to compute. Delays: all but the first method is
done, and a share with nothing to do is started so many seconds after the one that computes it. Every share must end
with status 0, and leave every cell done and a report that is whole and made from the last table. Exits 1 otherwise.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from experiment import load_results
from experiment.report.plots.gallery import GALLERY
from experiment.report.up_to_date import made_from, stamped_plots

METHODS = ["WT", "FT", "ALDS", "SVD"]
PARAMETERS = {
    "network": {"name": "lenet5", "dataset": "Digits", "outputSize": 10},
    "training": {
        "batchSize": 32, "numEpochs": 2, "optimizer": "SGD", "optimizerKwargs": {"lr": 0.02, "momentum": 0.9},
        "transformsFinal": [{"type": "ToTensor"}, {"type": "Normalize", "kwargs": {"mean": [0.3], "std": [0.3]}}],
    },
    "retraining": {"startEpoch": 1},
    "experiments": {
        "methods": METHODS, "mode": "retrain", "numNets": 1, "spacing": [{"type": "manual", "values": [0.5, 0.2]}],
    },
}  # fmt: skip


def main() -> int:
    """Run the rounds and the delays; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--delays", type=float, nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # reports name their folder as the command does
        folder = Path()
        (folder / "small.yaml").write_text(yaml.safe_dump(PARAMETERS))
        assert start(folder, "whole", "-j", "1").wait() == 0
        wrong = 0
        for number in range(options.rounds):
            shares = 2 + number % 3
            wrong += trial(folder, f"round {number}, {shares} shares", METHODS, shares, [0.0] * shares)
        for delay in options.delays:
            wrong += trial(folder, f"delay {delay:g} s", METHODS[:1], len(METHODS), [0.0, delay])
    print(f"{wrong} of {options.rounds + len(options.delays)} went wrong")
    return 1 if wrong else 0


def start(folder: Path, results: str, *arguments: str) -> subprocess.Popen[str]:
    """The command, in a process of its own, with the trained networks of all."""
    command = [sys.executable, "-m", "experiment.main", "small.yaml", "-q", "--results", results, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trial(folder: Path, name: str, open_methods: list[str], shares: int, delays: list[float]) -> bool:
    """Start shares after so many seconds each, with the cells of some methods to compute; whether anything is wrong."""
    shutil.rmtree(folder / "shared", ignore_errors=True)
    shutil.copytree(folder / "whole", folder / "shared")
    for method in open_methods:
        for cell in (folder / "shared" / "small" / "cells").glob(f"{method}-*"):
            shutil.rmtree(cell)
    begun, started = time.monotonic(), []
    for share, delay in enumerate(delays):
        time.sleep(max(0.0, begun + delay - time.monotonic()))
        started.append(start(folder, "shared", "-j", str(shares), "-i", str(share)))
    said = [process.communicate()[0] for process in started]
    faults = [f"share {k}: {process.returncode}: {said[k]}" for k, process in enumerate(started) if process.returncode]
    faults += list(report_faults(folder / "shared" / "small"))
    print(f"{name}: {'; '.join(faults) or 'fine'}", flush=True)
    return bool(faults)


def report_faults(folder: Path) -> list[str]:
    """What is wrong with a finished experiment's table and report."""
    faults = []
    if len(load_results(folder).query("status == 'done'")) != 1 + 2 * len(METHODS):
        faults.append("cells are missing in results.csv")
    text = (folder / "report.md").read_text() if (folder / "report.md").is_file() else ""
    linked = re.findall(r"\(<([^>]+)>\)", text)
    faults += [f"{name} is linked and not there" for name in linked if not (folder / name).is_file()]
    if not linked or stamped_plots(folder, made_from(folder, GALLERY)) is None:
        faults.append("the report is not that of the last table")
    if left := [path.name for path in folder.rglob(".*.partial*")]:
        faults.append(f"left behind: {left}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
