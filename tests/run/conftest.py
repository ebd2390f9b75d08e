"""A small real experiment (scikit-learn's digits) that the tests of the runner vary."""

import contextlib
import copy
import multiprocessing
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiment.main import main
from experiment.report import Report

SMALL: dict[str, Any] = {
    "network": {"name": "lenet300_100", "dataset": "Digits", "outputSize": 10},
    "training": {
        "batchSize": 64,
        "numEpochs": 2,
        "optimizer": "SGD",
        "optimizerKwargs": {"lr": 0.05, "momentum": 0.9},
        "lrSchedulers": [{"type": "MultiStepLR", "stepKwargs": {"milestones": [1]}, "kwargs": {"gamma": 0.1}}],
        "transformsTrain": [{"type": "RandomCrop", "kwargs": {"size": 28, "padding": 2}}],
        "transformsFinal": [{"type": "ToTensor"}, {"type": "Normalize", "kwargs": {"mean": [0.3], "std": [0.3]}}],
    },
    "retraining": {"numEpochs": 1},
    "experiments": {
        "methods": ["WT", "SVD"],
        "mode": "retrain",
        "numNets": 1,
        "spacing": [{"type": "manual", "values": [0.5, 0.1]}],
    },
}

PATIENCE = 300.0  # seconds until a test gives up waiting for another process, on a busy machine, too

Write = Callable[..., Path]


@pytest.fixture
def small() -> dict[str, Any]:
    """The parameters of the small experiment, to be changed at will."""
    return copy.deepcopy(SMALL)


@pytest.fixture(scope="session")
def small_parameters() -> dict[str, Any]:
    """The parameters of the small experiment, not to be changed."""
    return SMALL


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(in_tmp: Path) -> Write:
    """Write parameters to a file (default: param/small.yaml) and return its path."""

    def write_parameters(parameters: dict[str, Any], name: str = "param/small.yaml") -> Path:
        path = in_tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(parameters))
        return path

    return write_parameters


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """Run an experiment that several tests of a module share; returns the folder in which the command ran."""

    def run(parameters: dict[str, Any], *options: str) -> Path:
        folder = tmp_path_factory.mktemp("shared")
        (folder / "param").mkdir()
        (folder / "param/small.yaml").write_text(yaml.safe_dump(parameters))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("experiment.report.write_report", write_nothing)
            assert main(["param/small.yaml", "-j", "1", "-q", *options]) == 0
        return folder

    return run


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without drawing, for tests that look at results alone: drawing takes longer than computing."""

    monkeypatch.setattr("experiment.report.write_report", write_nothing)


def write_nothing(folder: Path) -> Report:
    """Stands for the writing of a report."""
    return Report(
        [], folder / "report.md", *(folder / name for name in ("report.html", "table.tex", "comparisons.csv"))
    )


class Forked:
    """A call of the command in a process and process group of its own, forked from this one: it starts at once."""

    def __init__(self, run: Callable[[], int], log: Path) -> None:
        self.log = log
        with warnings.catch_warnings():  # newer Pythons warn of threads, of which this process has none that matter
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        self._status: int | None = None
        if self.pid == 0:
            self._be(run)
        with contextlib.suppress(OSError):  # both do it: whoever comes first
            os.setpgid(self.pid, self.pid)

    def _be(self, run: Callable[[], int]) -> None:
        status = 99
        try:
            os.setpgid(0, 0)
            stream = self.log.open("w")
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            sys.stdout = sys.stderr = os.fdopen(os.dup(stream.fileno()), "w", buffering=1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            status = run()
        finally:
            sys.stderr.flush()
            os._exit(status)

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, happened: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait until something has happened; fails if it ends before, or takes too long."""
        end = time.monotonic() + seconds
        while not happened():
            assert self._poll() is None, f"ended with {self._status} before: {self.said}"
            assert time.monotonic() < end, f"waited in vain: {self.said}"
            time.sleep(0.002)

    def send(self, number: int, *, group: bool = True) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit status; minus the signal that ended it."""
        end = time.monotonic() + seconds
        while self._poll() is None:
            assert time.monotonic() < end, f"does not end: {self.said}"
            time.sleep(0.005)
        assert self._status is not None
        return self._status

    def _poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def end(self) -> None:
        if self._poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self.wait()


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[[Callable[[], int]], Forked]]:
    """Start calls of the command in processes of their own; what is left of them is killed at the end."""
    started: list[Forked] = []

    def start(run: Callable[[], int]) -> Forked:
        started.append(Forked(run, tmp_path / f"said-{len(started)}.txt"))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The entry of a parameter file for a method with a fault (`tests/run/faulty.py`)."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return lambda fault: {"name": "faulty:ENTRY", "label": fault, "settings": {"fault": fault}}


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers forked from this process, which need not import torch again; all else about them is as it is."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr("experiment.run.workers.processes.multiprocessing.get_context", lambda kind: fork)


def parameters_with(**experiments: Any) -> dict[str, Any]:
    """The small experiment with other settings in its block `experiments`."""
    changed = copy.deepcopy(SMALL)
    changed["experiments"] |= experiments
    return changed


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which an experiment has run whose files are of every kind, for tests to copy."""
    from experiment.main import main

    folder = tmp_path_factory.mktemp("finished")
    small = parameters_with(mode="retrain-rewind", measure=["rank", "latency", "bytes"], latencyBatches=[1])
    small["retraining"] = {"startEpoch": 1}
    (folder / "param").mkdir()
    (folder / "param/small.yaml").write_text(yaml.safe_dump(small))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("experiment.report.write_report", write_nothing)
        assert main(["param/small.yaml", "-j", "1", "-q"]) == 0
    return folder


@pytest.fixture
def finished(finished_once: Path, in_tmp: Path) -> Path:
    """A copy of that folder as the working directory; its parameter file is `param/small.yaml`."""
    shutil.copytree(finished_once, in_tmp, dirs_exist_ok=True)
    return in_tmp
