"""What the program itself takes as the number of cells grows: seconds per cell, memory, files, plan, status, report.

    python tests/benchmark/many_cells.py --cells 10 100 1000 10000

The networks are tiny and are not trained, so that almost all time is the program's own. At every size, all but the last
`--real` cells are finished beforehand: a real cell of the same method, stored by the store under their keys, with its
figures moved along a curve. The others are computed by the command, and its time in training, compression and tests is
taken off. Then `--plan`, `--status`, the writing of `results.csv` and of the report, and a run with nothing to do are
timed, each in a process of its own. All times are seconds of CPU: what else the machine does counts for nothing.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
METHODS, KEEPS = ("WT", "SiPP", "SVD", "PCA", "ALDS"), 20
FILE = """\
network: {{name: "tiny_network:tiny", dataset: {{name: Digits, maxSamples: 64}}, outputSize: 10}}
training:
  batchSize: 32
  numEpochs: 0
  optimizer: SGD
  optimizerKwargs: {{lr: 0.1}}
  transformsFinal: [{{type: ToTensor}}]
experiments:
  methods: [{methods}]
  mode: retrain
  numNets: {nets}
  spacing: [{{type: geometric, numIntervals: {keeps}, maxVal: 0.9, minVal: 0.3}}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--real", type=int, default=20, help="cells that are computed at every size")
    parser.add_argument("--folder", type=Path, help="keep everything here, and use what is there")
    parser.add_argument("--do", choices=("run", "table", "report"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do is not None:
        json.dump({"run": run, "table": table, "report": report}[options.do](), sys.stderr)
        return
    print(f"{'cells':>7} {'program s/cell':>14} {'memory MiB':>10} {'files':>7} {'MB':>6} ", end="")
    print("".join(f"{name + ' s':>11}" for name in ("plan", "status", "table", "report", "resume")))
    with tempfile.TemporaryDirectory() as scratch:
        for cells in options.cells:
            print(row((options.folder or Path(scratch)).resolve() / str(cells), cells, options.real), flush=True)


def row(folder: Path, cells: int, real: int) -> str:
    """Prepare an experiment of so many cells, and time what the program does with it."""
    param = prepare(folder, cells, real)
    own = child(folder, "run")
    files = [path for path in (folder / "data/results").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    plan, status = (command(folder, param, option) for option in ("--plan", "--status"))
    table, report = child(folder, "table"), child(folder, "report")
    resume = command(folder, param, "-q")
    per_cell = f"{own['own'] / own['cells']:14.3f}" if own["cells"] else f"{'':14}"
    texts = f"{own['total']:>7} {per_cell} {own['memory']:10.0f} {len(files):7} {size:6.1f} "
    return texts + "".join(f"{took:11.2f}" for took in (plan, status, table["took"], report["took"], resume))


def prepare(folder: Path, cells: int, real: int) -> Path:
    """Write the parameter file, and finish all but the last cells with copies of real ones."""
    param = folder / "many.yaml"
    if param.is_file():
        return param
    folder.mkdir(parents=True)
    keeps = min(KEEPS, max(2, cells // len(METHODS)))
    nets = max(1, round(cells / (keeps * len(METHODS) + 1)))
    template = folder / "template.yaml"
    template.write_text(FILE.format(methods=", ".join(METHODS), nets=1, keeps=2))
    command(folder, template, "-q", "-j", "1")
    param.write_text(FILE.format(methods=", ".join(METHODS), nets=nets, keeps=keeps))
    copy_cells(folder, template, param, real)
    return param


def copy_cells(folder: Path, template: Path, param: Path, real: int) -> None:
    """Store a real cell of the same method under the keys of all but the last cells."""
    from experiment.run.cell.outcome import write_result

    store, plan = opened(folder, param)
    made, small = opened(folder, template)
    (reference,) = [cell for cell in small.cells if cell.method == "Reference"]
    folders = {cell.method: made.find(cell) for cell in small.cells}
    full = json.loads((folders["Reference"] / "result.json").read_text())
    for number, cell in enumerate(plan.cells[: len(plan.cells) - real]):
        source = folders[cell.method]
        result = json.loads((source / "result.json").read_text())
        result = {key: value for key, value in result.items() if key not in ("format", "files")}
        if cell.method != reference.method:
            top1 = (
                0.9 * (1 - math.exp(-6 * cell.keep)) + 0.001 * (number * 7919 % 31) - 0.02 * METHODS.index(cell.method)
            )
            result |= {"parameters": round(cell.keep * full["parameters"]), "flops": round(cell.keep * full["flops"])}
            result |= {"top1": top1, "top5": min(1.0, top1 + 0.05)}
        with store.writing(cell) as place:
            for path in source.iterdir():
                if path.name != "result.json":
                    shutil.copy(path, place)
            write_result(place, result)


def opened(folder: Path, param: Path) -> tuple[Any, Any]:
    """The store and the plan of a parameter file."""
    from experiment.config import load
    from experiment.run.disk.store import Store
    from experiment.run.grid.plan import plan_experiment
    from experiment.run.machine import find_machine

    os.chdir(folder)
    sys.path.insert(0, str(HERE.parent))
    plan = plan_experiment(load(param), find_machine("cpu"), reading=True)
    return Store(folder / "data/results" / plan.name), plan


def command(folder: Path, param: Path, *options: str) -> float:
    """Run the command; returns its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "experiment.main", param.name, *options],
        cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def child(folder: Path, do: str) -> dict[str, float]:
    """Run one of the parts of this file in a process of its own; returns what it measured."""
    done = subprocess.run(
        [sys.executable, str(HERE), "--do", do], cwd=folder, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return found


def environment() -> dict[str, str]:
    paths = [str(HERE.parent), str(HERE.parents[2])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def run() -> dict[str, float]:
    """Run the command in this process, apart from the report: its own seconds, the cells computed, and its memory."""
    from experiment import main as command_line
    from experiment import report
    from experiment.report.write import Report
    from experiment.run.cell import cell, chain, outcome

    work = Stopwatch()
    for module, name in ((cell, "make_cell_network"), (outcome, "measure_network"), (chain, "obtain_reference")):
        setattr(module, name, work.timed(getattr(module, name)))
    outputs = chain.ChainCompression.agreements
    chain.ChainCompression.agreements = work.timed(outputs)  # type: ignore[method-assign]
    nothing = Path()
    report.write_report = lambda folder: Report([], *4 * (nothing,))  # type: ignore[assignment]
    store, plan = opened(Path.cwd(), Path("many.yaml"))
    before = len(store.cell_folders())
    started = time.process_time()
    command_line.main(["many.yaml", "-j", "1", "-q"])
    took = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    done = len(store.cell_folders()) - before
    return {"own": took - work.seconds, "cells": done, "total": len(plan.cells), "memory": memory}


class Stopwatch:
    """The seconds spent in functions."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            if self._inside:
                return function(*arguments, **settings)
            self._inside, started = True, time.process_time()
            try:
                return function(*arguments, **settings)
            finally:
                self._inside = False
                self.seconds += time.process_time() - started

        return call


def table() -> dict[str, float]:
    """Write results.csv."""
    from experiment.run.disk.results_table import write_results_table

    store, plan = opened(Path.cwd(), Path("many.yaml"))
    started = time.process_time()
    write_results_table(store, plan)
    return {"took": time.process_time() - started}


def report() -> dict[str, float]:
    """Write the report."""
    from experiment.report import write_report

    started = time.process_time()
    write_report(Path("data/results/many"))
    return {"took": time.process_time() - started}


if __name__ == "__main__":
    main()
