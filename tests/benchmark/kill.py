"""Kill an experiment at random moments, continue it, and compare its results with those of an uninterrupted run.

    python tests/benchmark/kill.py --kills 20 param/digits/prune/lenet5.yaml
    python tests/benchmark/kill.py --kills 10 --interrupt --executor ray param/digits/prune/lenet5.yaml

Every kill is a SIGKILL to the whole process group, with --interrupt a SIGINT as Ctrl-C sends it, which ends in exit
status 130. The uninterrupted run is computed serially. Prints when each came and how much was done by then; exits 1 if
the results differ anywhere but in the seconds that things took.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

TIMES = ["seconds_compress", "seconds_retrain"]


def main() -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("param")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interrupt", action="store_true", help="as Ctrl-C does, instead of a kill")
    parser.add_argument("--executor", choices=("serial", "processes", "ray"), default="processes")
    parser.add_argument("--set", action="append", default=[], help="handed on to the command")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "experiment.main", str(Path(options.param).resolve()), "-q"]
        command += [f"--set={override}" for override in options.set]
        data = Path("data/datasets").resolve()
        started = time.monotonic()
        _finish([*command, "--data", str(data), "--executor", "serial"], folder / "whole")
        whole = time.monotonic() - started
        print(f"uninterrupted: {whole:.0f} s")
        command += ["--data", str(data), "--executor", options.executor]
        _kill_often(command, folder / "killed", options, whole)
        _finish(command, folder / "killed")
        return _compare(folder / "whole", folder / "killed")


def _finish(command: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _kill_often(command: list[str], folder: Path, options: argparse.Namespace, whole: float) -> None:
    """Kill at moments spread over start-up and work, so that about a whole run's time is spent between the kills."""
    folder.mkdir()
    sent, status = (signal.SIGINT, 130) if options.interrupt else (signal.SIGKILL, -signal.SIGKILL)
    draw = random.Random(options.seed)
    for i in range(options.kills):
        wait = draw.uniform(0.2, 2 * whole / options.kills) + draw.choice([0.0, 4.0, 6.0])
        process = subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=wait)
            how = "had finished"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, sent)
            ended = process.wait()
            how = "killed" if ended == status else f"killed, exit status {ended} instead of {status},"
        done = len(list(folder.glob("data/results/**/cells/*/result.json")))
        under_way = len(list(folder.glob("data/**/.partial-*/checkpoint.pt")))
        print(f"{i + 1:3}: {how} after {wait:5.1f} s, {done} cells done, {under_way} trainings under way")


def _compare(whole: Path, killed: Path) -> int:
    (a_path,), (b_path,) = (list(folder.glob("data/results/**/results.csv")) for folder in (whole, killed))
    a, b = (pd.read_csv(path, dtype=str).drop(columns=TIMES) for path in (a_path, b_path))
    if a.equals(b):
        print(f"the same results.csv: {len(a)} rows, every value equal (text for text, {', '.join(TIMES)} aside)")
        return 0
    print("the results differ:")
    print(a.compare(b))
    return 1


if __name__ == "__main__":
    sys.exit(main())
