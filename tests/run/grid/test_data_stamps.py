"""Data are part of keys: of what is trained and of what is tested on them, and of nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiment import load_results
from experiment.config import load
from experiment.main import main
from experiment.run.grid.data_facts import read_data_record
from experiment.run.grid.data_stamps import UNKNOWN
from experiment.run.grid.hardware import Machine
from experiment.run.grid.plan import ExperimentPlan, plan_experiment

OWN = """
import torch
from torch.utils.data import TensorDataset

def load(root, train):
    value = int((root / f"{train}.txt").read_text())
    images = torch.arange(20 * 64).reshape(20, 1, 8, 8).remainder(200).to(torch.uint8)
    images[0] = value
    return TensorDataset(images, torch.arange(20) % 2)
"""


def draw(folder: Path, shade: int = 0) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (40 * i, 100 * (name == "cat"), shade)).save(folder / f"{name}/{i}.png")


@pytest.fixture
def parameters(small: dict[str, Any], in_tmp: Path) -> dict[str, Any]:
    for part in ("train", "test"):
        draw(in_tmp / "data/datasets/mine" / part)
    small["network"] |= {"dataset": {"name": "ImageFolder", "settings": {"root": "mine"}}, "outputSize": 2}
    small["training"] |= {"transformsTrain": [], "transformsFinal": [], "batchSize": 4, "numEpochs": 1}
    small["experiments"] |= {"methods": ["WT"], "spacing": [{"type": "manual", "values": [0.5]}]}
    return small


def grid(path: Path, *overrides: str, reading: bool = False) -> ExperimentPlan:
    return plan_experiment(load(path, overrides), Machine("cpu"), reading=reading)


def keys(path: Path) -> tuple[str, list[str]]:
    """The key of the reference network, and those of all cells."""
    plan = grid(path)
    return plan.references[0].reference.key, [cell.key for cell in plan.cells]


def test_training_data_change_every_key_and_test_data_those_of_results(
    write: Any, parameters: dict[str, Any], in_tmp: Path
) -> None:
    path, data = write(parameters), in_tmp / "data/datasets/mine"
    reference, cells = keys(path)
    draw(data / "train", shade=9)
    trained, others = keys(path)
    assert trained != reference
    assert not set(others) & set(cells)
    draw(data / "train")
    assert keys(path) == (reference, cells)
    draw(data / "test", shade=9)
    trained, others = keys(path)
    assert trained == reference
    assert not set(others) & set(cells)
    parameters["experiments"]["datasetTest"] = "Digits"
    other_test = keys(write(parameters))
    draw(data / "test")  # which nothing is tested on
    assert keys(write(parameters)) == other_test


def test_a_plan_without_the_data_knows_what_the_last_run_knew(
    write: Any, parameters: dict[str, Any], in_tmp: Path, capsys: Any, no_plots: None
) -> None:
    path = write(parameters)
    assert main([str(path), "-j", "1", "-q"]) == 0
    assert len(read_data_record(in_tmp / "data/results/small").stamps) == 2

    def statuses(*more: str) -> list[str]:
        capsys.readouterr()
        assert main([str(path), "--plan=json", *more]) == 0
        return [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]

    assert statuses() == ["done", "done"]
    draw(in_tmp / "data/datasets/mine/train", shade=9)
    assert statuses() == ["pending", "pending"]
    shutil.rmtree(in_tmp / "data/datasets")
    assert statuses() == ["done", "done"]
    assert main([str(path), "-j", "1", "-q"]) == 0  # there is nothing to do
    (in_tmp / "data/results/small/data.json").write_text("{")
    assert statuses() == ["pending", "pending"]
    assert main([str(path), "-j", "1", "-q"]) == 2
    assert "network.dataset: no folder" in capsys.readouterr().err


def test_other_test_data_are_tested_without_training(
    write: Any, parameters: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    from experiment.run.cell import train_network

    parameters["experiments"] |= {"mode": "cascade", "spacing": [{"type": "manual", "values": [0.5, 0.2]}]}
    path = write(parameters)
    assert main([str(path), "-j", "1", "-q"]) == 0
    first = load_results(path)
    draw(in_tmp / "data/datasets/mine/test", shade=255)
    with monkeypatch.context() as patch:
        patch.setattr(train_network, "TrainingLoop", lambda *_, **__: pytest.fail("trained again"))
        assert main([str(path), "-j", "1", "-q"]) == 0
    second = load_results(path)
    assert not set(first["cell"]) & set(second["cell"])
    assert set(second["status"]) == {"done"}
    assert (second["loss"] != first["loss"]).all()
    same = ["parameters", "epochs", "bytes_file", "hardware"]
    assert second[same].equals(first[same])
    histories = sorted(p.read_text() for p in in_tmp.glob("data/results/small/cells/WT*/history.csv"))
    assert histories[0::2] == histories[1::2]
    shutil.rmtree(in_tmp / "data/results")  # what is trained anew is the same
    assert main([str(path), "-j", "1", "-q"]) == 0
    timed = ["seconds_compress", "seconds_retrain", "pareto"]
    assert load_results(path).drop(columns=timed).equals(second.drop(columns=timed))


def test_overrides_lead_to_the_same_folder_whatever_the_data_are(
    write: Any, parameters: dict[str, Any], in_tmp: Path
) -> None:
    path = write(parameters)
    before = grid(path, "seed=1")
    draw(in_tmp / "data/datasets/mine/train", shade=9)
    after = grid(path, "seed=1")
    assert before.name == after.name != "small"
    assert before.cells[0].key != after.cells[0].key


def test_data_of_ones_own_are_read_by_a_run_only(
    write: Any, parameters: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(in_tmp)
    (in_tmp / "own_keyed.py").write_text(OWN)
    for part in (True, False):
        (in_tmp / f"data/datasets/{part}.txt").write_text("1")
    parameters["network"]["dataset"] = "own_keyed:load"
    path = write(parameters)
    unread, first = grid(path), grid(path, reading=True)
    assert unread.stamps is not None
    assert unread.stamps.known() == {}
    assert list(unread.stamps.changes()) == [
        f"dataset own_keyed:load: its {part} data changed while cells were planned. Run the command again."
        for part in ("training", "test")
    ]
    assert [c.key for c in first.cells] == [c.key for c in grid(path, reading=True).cells]
    (in_tmp / "data/datasets/False.txt").write_text("2")
    second = grid(path, reading=True)
    assert second.references[0].reference == first.references[0].reference
    assert second.cells[0].key != first.cells[0].key
    (in_tmp / "data/datasets/True.txt").unlink()
    assert UNKNOWN not in grid(path, reading=True).stamps.known().values()  # type: ignore[union-attr]


def test_data_that_change_between_planning_and_computing_are_noticed(
    write: Any, parameters: dict[str, Any], in_tmp: Path
) -> None:
    stamps = grid(write(parameters)).stamps
    assert stamps is not None
    assert list(stamps.changes()) == []
    draw(in_tmp / "data/datasets/mine/test", shade=9)
    assert list(stamps.changes()) == [
        "dataset ImageFolder: its test data changed while cells were planned. Run the command again."
    ]
