"""The same numbers, whatever the way: by workers, in shares, through Ray, interrupted, in another order.

(Killed and continued: workers/test_stopping.py, and tests/benchmark/kill.py for as often as one likes.)
"""

import importlib.util
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiment.main import main
from experiment.report import Report

pytestmark = pytest.mark.slow

METHODS = ["SiPPRand", "FT", "ALDS"]  # drawn at random; filters, physically removed; low rank
MODES = ("retrain", "cascade", "cascade-rewind")

FEW_DIGITS = """
from torch import nn
from torch.utils.data import TensorDataset

from experiment.datasets.digits import load as load_digits


def load(root, train):
    pixels = load_digits("Digits", root, train, {}, 10).items
    return TensorDataset(pixels.images[::4, :, 2::3, 2::3], pixels.labels[::4])


def make(input_shape, output_size):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, output_size),
    )
"""

PARAMETERS: dict[str, Any] = {
    "network": {"name": "few_digits:make", "dataset": "few_digits:load", "outputSize": 10},
    "training": {
        "batchSize": 32,
        "numEpochs": 1,
        "optimizer": "SGD",
        "optimizerKwargs": {"lr": 0.1, "momentum": 0.9},
        "transformsTrain": [{"type": "RandomCrop", "kwargs": {"size": 9, "padding": 1}}],
        "transformsFinal": [{"type": "ToTensor"}],
    },
    "experiments": {"numNets": 2, "spacing": [{"type": "manual", "values": [0.8, 0.5, 0.3, 0.15]}]},
}

Tables = dict[str, pd.DataFrame]
FILES = [f"{mode}.yaml" for mode in MODES]


@contextmanager
def at_work(folder: Path, methods: list[str] = METHODS) -> Iterator[None]:
    """A new folder with the parameter files and the code that they name; it is the working directory inside."""
    folder.mkdir()
    (folder / "few_digits.py").write_text(FEW_DIGITS)
    for mode in MODES:
        some = methods[:1] if mode == "cascade-rewind" else methods
        experiments = PARAMETERS["experiments"] | {"mode": mode, "methods": some}
        (folder / f"{mode}.yaml").write_text(yaml.safe_dump(PARAMETERS | {"experiments": experiments}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr("experiment.report.write_report", lambda where: Report([], where, where, where, where))
        yield


def compute(folder: Path, *calls: list[str], methods: list[str] = METHODS) -> Tables:
    """What calls of the command leave in a folder of their own."""
    with at_work(folder, methods):
        for call in calls:
            assert main([*FILES, "-q", *call]) == 0
    return read(folder)


def read(folder: Path) -> Tables:
    """The tables, as text, one a mode; seconds left out."""
    tables = {mode: pd.read_csv(folder / f"data/results/{mode}/results.csv", dtype=str) for mode in MODES}
    return {mode: t.drop(columns=[c for c in t if c.startswith(("seconds_", "pareto"))]) for mode, t in tables.items()}


@pytest.fixture(scope="module")
def serially(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """What one process computes."""
    tables = compute(tmp_path_factory.mktemp("serial") / "run", ["-j", "1"])
    assert len(tables["retrain"]) == len(tables["cascade"]) == 2 * (1 + len(METHODS) * 4)
    for table in tables.values():
        assert set(table["status"]) == {"done"}
        assert set(table["epochs"]) == {"0", "1"}
        assert table["loss"].nunique() == len(table), "every cell is another network"
    (once, again) = (tables[mode][tables[mode]["keep_target"].isin(["0.3", "0.15"])] for mode in ("retrain", "cascade"))
    assert not set(once["loss"]) & set(again["loss"])
    return tables


def same(found: Tables, expected: Tables) -> None:
    for mode in MODES:
        pd.testing.assert_frame_equal(found[mode], expected[mode], check_exact=True)


def test_two_workers(serially: Tables, tmp_path: Path) -> None:
    same(compute(tmp_path / "run", ["-j", "2"]), serially)


def test_shares_of_a_job_array(serially: Tables, tmp_path: Path) -> None:
    same(compute(tmp_path / "run", ["-j", "2", "-i", "1"], ["-j", "2", "-i", "0"]), serially)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra: pip install 'experiment[ray]'")
def test_ray_on_a_cluster_of_its_own(serially: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it ends workers when others use up the memory
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or else it leaves a file in the home folder
    same(compute(tmp_path / "run", ["--executor", "ray"]), serially)


def test_interrupted_five_times(serially: Tables, tmp_path: Path, forked: Any) -> None:
    with at_work(tmp_path / "run"):
        for _ in range(5):
            process = forked(lambda: main([*FILES, "-j", "1"]))
            process.until(lambda: process.said.count("top-1") >= 4)  # noqa: B023 - it is over before the next one
            process.send(signal.SIGINT)
            assert process.wait() == 130, process.said
        assert main([*FILES, "-q", "-j", "1"]) == 0
    same(read(tmp_path / "run"), serially)


def test_methods_in_another_order(serially: Tables, tmp_path: Path) -> None:
    found = compute(tmp_path / "run", ["-j", "1"], methods=[METHODS[0], *reversed(METHODS[1:])])
    assert list(found["cascade"]["cell"]) != list(serially["cascade"]["cell"])
    same(*({mode: t.sort_values("cell", ignore_index=True) for mode, t in way.items()} for way in (found, serially)))
