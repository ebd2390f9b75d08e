"""Try every network by every family of methods, and say what holds for each result.

    python tests/benchmark/zoo.py --list
    python tests/benchmark/zoo.py --only "transformers/*" --csv zoo.csv
    python tests/benchmark/zoo.py --only torchvision/resnet18 "timm/vit*" --methods WT FT --onnx
    python tests/benchmark/zoo.py --csv zoo.csv --markdown zoo.md -j 2

Each network is made with random weights and compressed to half of its parameters. A row says whether the method
compressed it or why it refused; which share of the parameters is within its reach; and whether the network counts as
planned, has the same outputs after it is saved and loaded in a fresh process, keeps its structure in a training step,
and with --onnx is the same in ONNX Runtime. torchvision is needed; networks of timm and transformers are left out where
these are not installed.

Every network runs in a process of its own with a limit of time for each method, so that a crash costs one row. Rows are
appended to the CSV file as they come; a second run does what is missing there.
"""

import argparse
import csv
import fnmatch
import importlib.util
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zoo_tables
from zoo_networks import NETWORKS

from experiment.methods import METHODS

FAMILIES = ("WT", "ALDS", "SVD", "PCA", "FT", "Quantize")
COLUMNS = (
    "network", "method", "verdict", "reason", "parameters", "keep", "reach", *zoo_tables.CHECKS, "seconds", "peak_mib",
)  # fmt: skip
SAID = "zoo: "  # begins the lines of workers that are for us
STARTING = 60  # seconds more for imports and the making of a network

ROOT = Path(__file__).resolve().parents[2]

Row = dict[str, str]


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    options = parse()
    if options.work:
        return work(options)
    names = [name for name in NETWORKS if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)]
    names = [name for name in names if importlib.util.find_spec(name.partition("/")[0]) or name.startswith("own/")]
    if options.list:
        print("\n".join(names))
        return 0
    if not names:
        print(f"no network matches {' '.join(options.only)}; --list names them", file=sys.stderr)
        return 2
    done = read(options.csv)
    rows = list(done.values())
    with ThreadPoolExecutor(options.jobs) as pool:
        todo = {name: [m for m in options.methods if (name, m) not in done] for name in names}
        for found in pool.map(lambda name: of_network(name, todo[name], options), [n for n in names if todo[n]]):
            append(options.csv, found)
            print(zoo_tables.of_rows(found), end="\n\n", flush=True)
            rows += found
    rows = [row for row in rows if row["network"] in names and row["method"] in options.methods]
    print(zoo_tables.summary(rows))
    if options.markdown:
        options.markdown.write_text(f"{zoo_tables.summary(rows)}\n\n{zoo_tables.of_rows(rows)}\n", encoding="utf-8")
    return int(any(row["verdict"] in ("wrong", "crash") for row in rows))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help="names of networks, with *")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", choices=METHODS, default=FAMILIES)
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="networks at once")
    parser.add_argument("--limit", type=float, default=120, help="seconds for each method")
    parser.add_argument("--memory", type=float, default=8, help="GiB that a process may take")
    parser.add_argument("--onnx", action="store_true", help="compare with ONNX Runtime, which takes long")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--work", choices=("compress", "reload"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def read(file: Path | None) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run."""
    if file is None or not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        return {(row["network"], row["method"]): row for row in csv.DictReader(stream)}


def append(file: Path | None, rows: Sequence[Row]) -> None:
    if file is None:
        return
    new = not file.is_file()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def of_network(name: str, methods: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """The rows of one network: each method in turn, and then all that was saved in a fresh process."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as scratch:
        left = list(methods)
        while left:  # a process ends early where a method crashes it or takes too long
            for method, row in messages(name, "compress", tuple(left), Path(scratch), options):
                rows[method] = row
                left.remove(method)
        saved = [method for method in methods if (Path(scratch) / f"{method}.outputs").is_file()]
        while saved:
            for method, row in messages(name, "reload", tuple(saved), Path(scratch), options):
                rows[method]["reloaded"] = row.get("reloaded") or row["verdict"]
                saved.remove(method)
    return [dict(zoo_tables.verdict({"network": name, "method": m, **rows[m]})) for m in methods]


def messages(
    name: str, task: str, methods: Sequence[str], folder: Path, options: argparse.Namespace
) -> Iterator[tuple[str, Row]]:
    """What a worker says of each method, as it comes; ends after the method that the worker does not survive."""
    command = [sys.executable, __file__, "--work", task, "--only", name, "--folder", str(folder)]
    command += ["--memory", str(options.memory), "--methods", *methods, *(["--onnx"] if options.onnx else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=forward, args=(process, lines), daemon=True)
        reader.start()
        try:
            for i, method in enumerate(methods):
                try:
                    line = lines.get(timeout=options.limit + (STARTING if i == 0 else 0))
                except queue.Empty:
                    yield method, {"verdict": "timeout", "reason": f"more than {options.limit:g} s"}
                    return
                if line is None:
                    yield method, {"verdict": "crash", "reason": last_words(process.wait(), errors)}
                    return
                yield method, {key: str(value) for key, value in json.loads(line).items()}
        finally:
            process.kill()
            process.wait()
            reader.join()


def forward(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Put a process's lines that are for us into a queue, and None at their end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.startswith(SAID):
                lines.put(line.removeprefix(SAID))
    lines.put(None)


def last_words(status: int, errors: Any) -> str:
    """The last line that a process wrote to its standard error, and its exit status."""
    errors.seek(0)
    written = [line for line in errors.read().splitlines() if line.strip()]
    return f"exit status {status}: {written[-1][:300] if written else ''}"


def work(options: argparse.Namespace) -> int:
    """In a worker: one line for each method."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (int(options.memory * 2**30),) * 2)
    import zoo_trial

    (name,) = options.only
    specimen = NETWORKS[name]
    if options.work == "reload":
        for method in options.methods:
            say({"reloaded": zoo_trial.reloaded(specimen, options.folder, [method])[method]})
        return 0
    network, inputs = zoo_trial.make(specimen)
    for method in options.methods:
        try:
            row = zoo_trial.trial(specimen, network, inputs, method, options.folder, options.onnx)
        except Exception as error:  # no deliberate one: a fault of ours
            row = {"verdict": "wrong", "reason": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"}
        say(row)
    return 0


def say(row: dict[str, Any]) -> None:
    print(SAID + json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
