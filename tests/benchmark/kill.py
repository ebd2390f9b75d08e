"""Kill an experiment at random moments, continue it, and compare its results with those of an uninterrupted run.

    python tests/benchmark/kill.py --kills 50 param/digits/prune/lenet5.yaml
    python tests/benchmark/kill.py --kills 50 -j 2 --whom any param/digits/prune/lenet5.yaml

Whom: `group`, a SIGKILL to the process and all its workers; `worker`, to one worker alone, after which the command
goes on for a while; `stop`, a SIGTERM as batch systems send it; `any`, one of these each time. Prints when each came
and how much was done by then; exits 1 if the results differ anywhere but in the seconds that things took, or if
anything is left behind that only a process at work may have.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

TIMES = ["seconds_compress", "seconds_retrain", "pareto"]
WHOM = ("group", "worker", "stop")


def main() -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("param")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--whom", choices=(*WHOM, "any"), default="group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="handed on to the command")
    parser.add_argument("-j", dest="jobs", default="1", help="handed on to the command")
    parser.add_argument("--executor", choices=("serial", "processes", "ray"), help="handed on, once killing begins")
    options = parser.parse_args()
    if options.jobs == "1" and options.whom in ("worker", "any"):
        parser.error("--whom worker and any need workers: -j 2 or more")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "experiment.main", str(Path(options.param).resolve()), "-q"]
        command += ["-j", options.jobs, "--data", str(Path("data/datasets").resolve())]
        command += [f"--set={override}" for override in options.set]
        started = time.monotonic()
        start_up = _finish(command, folder / "whole")
        whole = time.monotonic() - started
        print(f"uninterrupted: {whole:.0f} s, {start_up:.0f} s of them until the first epoch", flush=True)
        command.append("--retry-failed")  # a cell fails whose worker was killed twice
        command += ["--executor", options.executor] if options.executor else []
        _kill_often(command, folder / "killed", options, start_up, whole - start_up)
        _finish(command, folder / "killed")
        return _compare(folder / "whole", folder / "killed") or _leftovers(folder / "killed")


def _finish(command: list[str], folder: Path) -> float:
    """Run it to its end; returns the seconds until there was a checkpoint."""
    folder.mkdir(exist_ok=True)
    started, start_up = time.monotonic(), 0.0
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.05)
        if not start_up and any(folder.glob("data/**/checkpoint.pt")):
            start_up = time.monotonic() - started
    if process.returncode:
        sys.exit(f"ended with {process.returncode}")
    return start_up


def _kill_often(command: list[str], folder: Path, options: argparse.Namespace, start_up: float, work: float) -> None:
    """Kill one in four at start-up, the others at work, so that there is about a whole run's work between the kills.

    Where all is done before the kills are, it begins anew in another folder.
    """
    folder.mkdir()
    draw = random.Random(options.seed)
    kills = attempts = failures = 0
    while kills < options.kills:
        attempts += 1
        wait = draw.uniform(0.2, start_up)
        if attempts % 4:
            wait = start_up + draw.uniform(0.0, 3 * work / options.kills)
        whom = draw.choice(WHOM) if options.whom == "any" else options.whom
        process = subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            how = _kill(process, whom, draw)
            kills += how != "no worker yet"
        else:
            how = f"had finished ({process.returncode})"
            failures += process.returncode == 1  # of cells whose workers were killed twice
            if process.returncode not in (0, 1) or failures > options.kills:
                sys.exit(f"{kills}: {how}")
            if process.returncode == 0:
                folder.rename(folder.with_name(f"finished-{attempts}"))
                _same(folder.with_name(f"finished-{attempts}"), folder.with_name("whole"))
                folder.mkdir()
        done = len(list(folder.glob("data/results/**/cells/*/result.json")))
        under_way = len(list(folder.glob("data/**/.partial-*/checkpoint.pt")))
        print(f"{kills:3}: {how} after {wait:5.1f} s, {done} cells done, {under_way} trainings under way", flush=True)


def _kill(process: subprocess.Popen[bytes], whom: str, draw: random.Random) -> str:
    """Kill it, or one of its workers: then it goes on for a while, and is ended with all that is left of it."""
    if whom == "worker":
        workers = _workers(process.pid)
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=draw.uniform(1, 10))
    if whom == "stop":
        process.send_signal(signal.SIGTERM)
        return f"told to stop, ended with {process.wait(timeout=120)}"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if whom == "worker":
        return "a worker killed" if workers else "no worker yet"
    return "killed"


def _workers(parent: int) -> list[int]:
    """The processes that a process has spawned for work."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found = []
    for child in map(int, children):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def _compare(whole: Path, killed: Path) -> int:
    a, b = _table(whole), _table(killed)
    if a.equals(b):
        print(f"the same results.csv: {len(a)} rows, every value equal (text for text, {', '.join(TIMES)} aside)")
        return 0
    print("the results differ:")
    print(a.compare(b))
    return 1


def _same(killed: Path, whole: Path) -> None:
    if not _table(killed).equals(_table(whole)):
        sys.exit(f"{killed}: its results differ from those of the uninterrupted run")


def _table(folder: Path) -> pd.DataFrame:
    (path,) = folder.glob("data/results/**/results.csv")
    return pd.read_csv(path, dtype=str).drop(columns=TIMES)


def _leftovers(folder: Path) -> int:
    found = [path for name in (".writing-*", ".partial-*", "*.damaged*") for path in folder.glob(f"data/**/{name}")]
    for path in found:
        print(f"left behind: {path.relative_to(folder)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
