"""A simulated cluster on one machine: many workers that are killed at random, on a slow and stale file system.

    python tests/benchmark/simulated_cluster.py --workers 64 --cells 20000 --kills 200

Real: the plan, the queue, the store, all locks, live states and job-array shares, in one process per worker, as the
command runs them. Every share runs twice, as if its job had been submitted twice, so that two workers want each cell.
Simulated: training and compression, which sleep for `--seconds`; the report, which is not written; results.csv, which
only the first worker writes (`many_cells.py` measures both); and the file system. On it every call takes `--latency`
seconds, and what a worker has seen of a name or a listing stays true for it for up to `--stale` seconds, as with NFS.
Its own changes are visible at once, opening a folder asks the server (close-to-open consistency), and locks, exclusive
creation and renaming are atomic.

A worker is killed with SIGKILL at a random moment, and started again. At the end the program exits with 1 unless every
cell has one intact result, no cell was finished twice, and nothing is left behind. It prints what the program took per
cell: seconds of CPU (its own and those of the simulation) and calls of the file system. Their sum, with 0.5 and 5 ms
for each call, is compared with the `--work` seconds that a cell would take. Waiting for a core does not count: on a
cluster every worker has its own.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import fcntl
import gc
import io
import os
import random
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiment.config import load
from experiment.run import run_experiments
from experiment.run.cell import chain, outcome
from experiment.run.cell.events import Advanced, ReportEvent
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.cells import Cell
from experiment.run.grid.plan import ExperimentPlan, plan_experiment
from experiment.run.machine import find_machine

METHODS, KEEPS = ("WT", "FT", "SVD", "PCA", "ALDS"), 20
FILE = """\
network: {{name: lenet300_100, dataset: Digits, outputSize: 10}}
training:
  batchSize: 32
  numEpochs: 1
  optimizer: SGD
  optimizerKwargs: {{lr: 0.1}}
  transformsFinal: [{{type: ToTensor}}]
experiments:
  methods: [{methods}]
  mode: retrain
  numNets: {nets}
  spacing: [{{type: geometric, numIntervals: {keeps}, maxVal: 0.9, minVal: 0.1}}]
"""


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        seconds: that a cell takes here; latency, stale: of the file system, in seconds.
        kills: number of workers that are killed.
        tables: whether the first worker writes results.csv.
    """

    workers: int = 64
    cells: int = 20_000
    kills: int = 200
    seconds: float = 0.5
    latency: float = 0.0005
    stale: float = 3.0
    seed: int = 0
    tables: bool = True

    @property
    def shares(self) -> int:
        return max(1, self.workers // 2)


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        faults: of the program; empty if all is well.
        started, finished: how often cells were.
        cpu, calls: seconds of CPU, and calls of the file system, over all workers.
    """

    faults: list[str]
    cells: int
    started: int
    finished: int
    killed: int
    cpu: float
    calls: int


def simulate(cluster: Cluster, folder: Path) -> Outcome:
    """Run the experiment on the cluster, in a folder, until no worker is left."""
    plan = _plan(cluster, folder)
    (folder / "logs").mkdir()
    gc.collect()
    gc.freeze()  # forked workers share the memory of this process
    draw = random.Random(cluster.seed)
    running = {_fork(cluster, plan, folder, number, 0): number for number in range(cluster.workers)}
    killed, lives = 0, Counter[int]()
    faults = []
    next_kill, pause = time.monotonic(), _seconds_between_kills(cluster)
    while running:
        ended = [status for pid in running if (status := os.waitpid(pid, os.WNOHANG))[0]]
        for pid, status in ended:
            number = running.pop(pid)
            if os.WIFSIGNALED(status):
                lives[number] += 1
                running[_fork(cluster, plan, folder, number, lives[number])] = number
            elif os.waitstatus_to_exitcode(status) != 0:
                faults.append(f"worker {number}: {(folder / f'logs/{number}-{lives[number]}.error').read_text()}")
        if ended:
            continue
        if killed < cluster.kills and time.monotonic() >= next_kill and _started(folder):
            os.kill(draw.choice(list(running)), signal.SIGKILL)
            killed, next_kill = killed + 1, time.monotonic() + draw.uniform(0, 2 * pause)
        else:
            time.sleep(0.005)
    gc.unfreeze()
    return _judged(cluster, plan, folder, faults, killed)


def _plan(cluster: Cluster, folder: Path) -> ExperimentPlan:
    param = folder / "cluster.yaml"
    keeps = min(KEEPS, max(2, cluster.cells // len(METHODS)))
    nets = max(1, round(cluster.cells / (keeps * len(METHODS) + 1)))
    param.write_text(FILE.format(methods=", ".join(METHODS), nets=nets, keeps=keeps))
    return plan_experiment(load(param), find_machine("cpu"), results=folder / "results")


def _seconds_between_kills(cluster: Cluster) -> float:
    """So that all kills come while there is work."""
    return 0.7 * cluster.cells * cluster.seconds / cluster.workers / max(1, cluster.kills)


def _started(folder: Path) -> bool:
    return any(path.stat().st_size for path in (folder / "logs").glob("*.log"))


def _fork(cluster: Cluster, plan: ExperimentPlan, folder: Path, number: int, life: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _be_worker(cluster, plan, folder, number, life)
            status = 0
        except BaseException:
            import traceback

            (folder / f"logs/{number}-{life}.error").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return pid


def _be_worker(cluster: Cluster, plan: ExperimentPlan, folder: Path, number: int, life: int) -> None:
    files = SlowFiles(folder / "results", cluster, random.Random(f"{cluster.seed}-{number}-{life}"))
    log = os.open(folder / f"logs/{number}-{life}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what: str, key: str) -> None:
        os.write(log, f"{what} {key} {time.process_time() - born:.6f} {files.calls}\n".encode())

    born = time.process_time()
    _simulate_work(cluster, note)
    if number or not cluster.tables:
        run_experiments.write_results_table = lambda store, plan: {}  # type: ignore[assignment]
    files.install()
    report = SimpleNamespace(markdown=folder, html=folder, main_plots=[])
    place = Directories(folder / "results", folder / "networks", folder / "data")
    how = run_experiments.Options(share=(number % cluster.shares, cluster.shares), executor="serial", verbosity=-1)
    run_experiments.run_session([plan], [place], how, lambda folder: report, lambda text: None)
    note("end", "-")


def _simulate_work(cluster: Cluster, note: Callable[[str, str], None]) -> None:
    """Replace what computes by what sleeps; all that asks, locks and stores stays as it is."""
    reference = SimpleNamespace(count=SimpleNamespace(parameters=1000))

    def store_result(cell: Cell, store: Store) -> dict[str, Any]:
        result = {"status": "done", "epochs": 1, "parameters": round(1000 * cell.keep), "flops": 1, "loss": 1.0}
        result |= {"top1": 0.5, "top5": 0.9, "hardware": "simulated"}
        note("start", cell.key)
        time.sleep(cluster.seconds)
        with store.writing(cell) as folder:
            outcome.write_result(folder, result)
        note("done", cell.key)
        return result

    def compute(cell: Cell, compression: Any, report: ReportEvent) -> dict[str, Any]:
        report(Advanced(cell.epochs_retrain))
        return store_result(cell, compression.store)

    def compression(of: Any, reference: Any, context: Any) -> Any:
        return SimpleNamespace(chain=of, reference=reference, parameters=of.variant.parameters, store=context.store,
                               cell_ended=lambda cell, result: None)  # fmt: skip

    patched: dict[Any, dict[str, Any]] = {
        chain: {
            "obtain_reference": lambda *of: reference,
            "_store_reference": lambda task, reference, context: store_result(task.cell, context.store),
            "ChainCompression": compression,
            "compute_cell": compute,
        },
        run_experiments: {"_check": lambda experiments: [], "describe_environment": lambda *of: {}},
    }
    for module, functions in patched.items():
        for name, function in functions.items():
            setattr(module, name, function)


class SlowFiles:
    """A file system as one machine sees it: every call takes time, and old answers are given for a while."""

    def __init__(self, root: Path, cluster: Cluster, draw: random.Random) -> None:
        self.root, self.cluster, self.draw, self.calls = str(root), cluster, draw, 0
        self._seen: dict[str, dict[str, tuple[float, os.stat_result | None]]] = {}  # folder -> name -> until, answer
        self._listed: dict[str, tuple[float, list[Any]]] = {}
        self._stat, self._open, self._io_open = os.stat, os.open, io.open
        self._scandir, self._listdir, self._flock = os.scandir, os.listdir, fcntl.flock

    def install(self) -> None:
        """Replace the calls of this process."""
        os.stat, os.lstat, os.open = self.stat, self.stat, self.open  # type: ignore[assignment]
        os.scandir, os.listdir = self.scandir, self.listdir  # type: ignore[assignment]
        io.open = builtins.open = self.io_open  # type: ignore[assignment]
        for name in ("mkdir", "rmdir", "unlink", "remove", "utime", "rename", "replace"):
            setattr(os, name, self._changing(getattr(os, name)))
        os.fsync = lambda descriptor: self._ask()  # type: ignore[assignment]
        fcntl.flock = self.flock  # type: ignore[assignment]

    def stat(self, path: Any, **options: Any) -> os.stat_result:
        place = self._place(path, options)
        if place is None:
            return self._stat(path, **options)
        self._require_known_parents(place)
        folder, name = os.path.split(place)
        until, answer = self._seen.get(folder, {}).get(name, (0.0, None))
        if time.monotonic() >= until:
            self._ask()
            try:
                answer = self._stat(path, **options)
            except FileNotFoundError:
                answer = None
            self._seen.setdefault(folder, {})[name] = self._until(), answer
        if answer is None:
            raise _missing(place)
        return answer

    def open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        place = self._place(path, options)
        if place is not None:
            self._before_opening(place, creates=bool(flags & os.O_CREAT))
        descriptor = self._open(path, flags, mode, **options)
        if place is not None and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._seen.pop(place, None)  # the server was asked
            self._listed.pop(place, None)
        return descriptor

    def io_open(self, path: Any, mode: str = "r", *of: Any, **options: Any) -> Any:
        place = self._place(path, {})
        if place is not None:
            self._before_opening(place, creates="r" not in mode)
        return self._io_open(path, mode, *of, **options)

    def scandir(self, path: Any = ".") -> Any:
        place = self._place(path, {})
        return self._scandir(path) if place is None else _Entries(self._entries(place))

    def listdir(self, path: Any = ".") -> list[str]:
        place = self._place(path, {})
        return self._listdir(path) if place is None else [entry.name for entry in self._entries(place)]

    def flock(self, *of: Any) -> None:
        self._ask()
        self._flock(*of)

    def _entries(self, place: str) -> list[Any]:
        until, entries = self._listed.get(place, (0.0, []))
        if time.monotonic() >= until:
            self._ask()
            with self._scandir(place) as found:
                entries = list(found)
            self._listed[place] = self._until(), entries
        return entries

    def _before_opening(self, place: str, *, creates: bool) -> None:
        """A file that was missing is still missing for a while, else the server is asked."""
        self._require_known_parents(place)
        folder, name = os.path.split(place)
        until, answer = self._seen.get(folder, {}).get(name, (0.0, None))
        if not creates and answer is None and time.monotonic() < until:
            raise _missing(place)
        self._ask()
        self._forget(place)

    def _changing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def change(*of: Any, **options: Any) -> Any:
            places = [place for each in of if (place := self._place(each, options)) is not None]
            for place in places:
                self._require_known_parents(place)
            if places:
                self._ask()
            try:
                return function(*of, **options)
            finally:
                for place in places:
                    self._forget(place)

        return change

    def _forget(self, place: str) -> None:
        folder, name = os.path.split(place)
        self._seen.get(folder, {}).pop(name, None)
        for gone in (folder, place):
            self._listed.pop(gone, None)
        self._seen.pop(place, None)

    def _require_known_parents(self, place: str) -> None:
        """What lies in a folder that was missing is missing, too."""
        now, folder = time.monotonic(), os.path.dirname(place)
        while len(folder) > len(self.root):
            parent, name = os.path.split(folder)
            until, answer = self._seen.get(parent, {}).get(name, (0.0, None))
            if answer is None and now < until:
                raise _missing(place)
            folder = parent

    def _place(self, path: Any, options: dict[str, Any]) -> str | None:
        """The path, if it is on the slow file system."""
        if isinstance(path, str | os.PathLike) and options.get("dir_fd") is None:
            text = os.fspath(path)
            if isinstance(text, str) and text.startswith(self.root):
                return text
        return None

    def _until(self) -> float:
        return time.monotonic() + self.cluster.stale * self.draw.uniform(0.3, 1.0)

    def _ask(self) -> None:
        self.calls += 1
        if self.cluster.latency:
            time.sleep(self.cluster.latency * self.draw.uniform(0.0, 2.0))


class _Entries:
    """What `os.scandir` returns."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[Any]:
        return self._entries

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


def _missing(place: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)


def _judged(cluster: Cluster, plan: ExperimentPlan, folder: Path, faults: list[str], killed: int) -> Outcome:
    """Look at the results and the logs of all workers."""
    store = Store(folder / "results" / plan.name)
    results = store.results(plan.cells)
    keys = [cell.key for cell in plan.cells]
    lost = [key for key in keys if results.get(key, {}).get("status") != "done"]
    started, finished = Counter[str](), Counter[str]()
    cpu = calls = 0.0
    for path in sorted((folder / "logs").glob("*.log")):
        lines = [line.split() for line in path.read_text().splitlines()]
        started.update(key for what, key, *_ in lines if what == "start")
        finished.update(key for what, key, *_ in lines if what == "done")
        cpu += float(lines[-1][2]) if lines else 0.0
        calls += int(lines[-1][3]) if lines else 0
    twice = [key for key, times in finished.items() if times > 1]
    left = [path.name for path in store.cells_folder.iterdir() if path.name.startswith(".") or ".damaged" in path.name]
    faults += [f"{len(lost)} cells lost: {lost[:3]}"] if lost else []
    faults += [f"{len(twice)} cells finished twice: {twice[:3]}"] if twice else []
    faults += [f"left behind: {left[:3]}"] if left else []
    folders = len(list(store.cells_folder.iterdir())) - len(left)
    faults += [f"{folders} folders for {len(keys)} cells"] if folders != len(keys) else []
    again = started.total() - len(keys)
    faults += [f"{again} cells begun again after {killed} kills"] if again > killed else []
    return Outcome(faults, len(keys), started.total(), finished.total(), killed, cpu, int(calls))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("workers", 64), ("cells", 20_000), ("kills", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in (("seconds", 0.5), ("latency", 0.0005), ("stale", 3.0), ("work", 30.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    options = vars(parser.parse_args(arguments))
    work, began = options.pop("work"), time.monotonic()
    cluster = Cluster(**options)
    with tempfile.TemporaryDirectory() as scratch:
        found = simulate(cluster, Path(scratch))
    took = time.monotonic() - began
    print(f"{cluster.workers} workers, {found.cells} cells, {found.killed} workers killed, {took:.0f} s")
    print(f"cells begun {found.started} times, finished {found.finished} times by workers that lived to say so")
    cpu, calls = found.cpu / found.cells, found.calls / found.cells
    print(f"per cell: {1000 * cpu:.1f} ms of CPU, {calls:.0f} calls of the file system")
    for latency in (0.0005, 0.005):
        own = cpu + calls * latency
        share = 100 * own / (own + work)
        print(f"with {1000 * latency:g} ms per call: {own:.3f} s per cell, {share:.2f} % of cells of {work:g} s; "
              f"5 % of cells of {19 * own:.1f} s")  # fmt: skip
    for fault in found.faults:
        print(f"fault: {fault}")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
