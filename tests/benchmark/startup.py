"""Seconds that the command takes where nothing is computed: its help, and its plans.

    python tests/benchmark/startup.py --cells 5000

Times `--help`, `--plan` of every shipped parameter file, and `--plan` and a second run's look at an experiment whose
cells are all finished (their results are made up here, in a temporary folder). Every line is the fastest of three.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiment.config import load
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.plan import plan_experiment
from experiment.run.machine import find_machine

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 3
MANY = """\
file: digits/prune/lenet5.yaml
experiments:
  methods: [WT, FT, SVD, ALDS, PCA]
  numNets: {nets}
  spacing: [{{type: geometric, numIntervals: 20, maxVal: 0.8, minVal: 0.01}}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=5000)
    cells = parser.parse_args().cells
    print(f"{seconds(['--help'], ROOT):7.2f} s  --help")
    files = [p.relative_to(ROOT) for p in (ROOT / "param").rglob("*.yaml") if p.parts[-3] != "training"]
    timed = [(seconds([str(path), "--plan"], ROOT), path) for path in files]
    for took, path in sorted(timed, reverse=True)[:5]:
        print(f"{took:7.2f} s  --plan {path}")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "many.yaml").write_text(MANY.format(nets=max(1, cells // 100)))
        plan = plan_experiment(load(here / "many.yaml"), find_machine("cpu"))
        for cell in plan.cells:
            place = here / "data/results" / plan.name / "cells" / cell.folder
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(made_up()))
        print(f"{seconds(['many.yaml', '--plan'], here):7.2f} s  --plan of {len(plan.cells)} finished cells")


def made_up() -> dict[str, object]:
    """A result like those of finished cells, in content and size."""
    numbers = dict.fromkeys(("parameters", "flops", "flops_unmasked", "bytes_dense", "bytes_file", "epochs"), 100_000)
    shares = dict.fromkeys(("loss", "top1", "top5", "top1_before_retraining"), 0.97)
    return {"format": FORMAT_VERSION, "status": "done", **numbers, **shares}


def seconds(arguments: list[str], folder: Path) -> float:
    """The fastest of some calls, from the start of the interpreter to its end."""
    command = [sys.executable, "-m", "experiment.main", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - started)
    return min(took)


if __name__ == "__main__":
    main()
