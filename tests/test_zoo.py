"""The zoo of tests/benchmark: its processes, what it continues, and that its checks notice what is wrong."""

import csv
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent / "benchmark"


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("zoo")


def test_a_network_is_tried_in_its_own_processes_and_not_again(
    zoo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zoo.csv"
    monkeypatch.setattr("sys.argv", ["zoo", "--only", "own/grouped", "--methods", "WT", "SVD", "--csv", str(file)])
    assert zoo.main() == 0
    with file.open(newline="") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["WT", "SVD"]
    assert rows["WT"]["verdict"] == "ok"
    assert [rows["WT"][check] for check in ("finite", "counted", "reloaded", "step")] == ["yes"] * 4
    assert float(rows["WT"]["keep"]) <= 0.5
    monkeypatch.setattr(zoo, "of_network", None)  # nothing is left to do
    capsys.readouterr()
    assert zoo.main() == 0
    assert "1 networks, 2 methods" in capsys.readouterr().out


def test_a_process_that_dies_costs_one_row(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"compress": [[("WT", {"verdict": "ok"}), ("FT", {"verdict": "crash"})], [("SVD", {"verdict": "timeout"})]]}
    asked: list[tuple[str, ...]] = []

    def messages(name: str, task: str, methods: tuple[str, ...], *rest: object) -> list[tuple[str, dict[str, str]]]:
        asked.append(methods)
        return said[task].pop(0)

    monkeypatch.setattr(zoo, "messages", messages)
    rows = zoo.of_network("own/grouped", ["WT", "FT", "SVD"], zoo.parse([]))
    assert [(row["method"], row["verdict"]) for row in rows] == [("WT", "ok"), ("FT", "crash"), ("SVD", "timeout")]
    assert asked == [("WT", "FT", "SVD"), ("SVD",)]


def test_checks_notice_what_is_wrong(zoo: ModuleType, tmp_path: Path) -> None:
    trial = importlib.import_module("zoo_trial")
    specimen = zoo.NETWORKS["own/unet_1d"]
    network, inputs = trial.make(specimen)
    row = trial.trial(specimen, network, inputs, "WT", tmp_path, onnx=False)
    assert row["verdict"] == "ok"
    outputs = tmp_path / "WT.outputs"
    assert trial.reloaded(specimen, tmp_path, ["WT"]) == {"WT": "yes"}
    torch.save([1.01 * t for t in torch.load(outputs)], outputs)
    assert trial.reloaded(specimen, tmp_path, ["WT"])["WT"].startswith("differs by 0.0")
    tables = importlib.import_module("zoo_tables")
    assert tables.verdict(row | {"reloaded": "differs by 1"})["verdict"] == "wrong"
