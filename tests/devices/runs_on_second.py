"""Whole runs on another device: training, retraining in every mode, measuring and evaluation; and files for any device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from second_device import SECOND, WrongDevice, register
from torch import Tensor, nn

from experiment import LC, compress, load_network, save_network
from experiment.main import main
from experiment.report import Report
from experiment.measure.memory import peak_memory
from experiment.run.grid.hardware import Machine
from experiment.tensor_file import tensors_in
from experiment.training.factories import OPTIMIZERS

register()

BASE: dict[str, Any] = {
    "network": {"name": "lenet5", "dataset": "Digits", "outputSize": 10},
    "training": {
        "batchSize": 256,
        "numEpochs": 2,
        "optimizer": "SGD",
        "optimizerKwargs": {"lr": 0.05, "momentum": 0.9},
        "transformsTrain": [{"type": "RandomCrop", "kwargs": {"size": 28, "padding": 2}}],
        "transformsFinal": [{"type": "ToTensor"}, {"type": "Normalize", "kwargs": {"mean": [0.3], "std": [0.3]}}],
    },
    "retraining": {"numEpochs": 1},
    "experiments": {"mode": "retrain", "spacing": [{"type": "manual", "values": [0.5]}]},
}
RUNS: dict[str, dict[str, Any]] = {
    "retrain": {
        "retraining": {"distillation": {"alpha": 0.7}},
        "experiments": {"methods": ["WT", "SVD", "FT"], "measure": ["rank", "latency", "bytes"], "latencyBatches": [1]},
    },
    "quantize": {"experiments": {"methods": [{"name": "Quantize", "settings": {"dtype": "int4"}}], "spacing": ()}},
    "cascade-rewind": {"retraining": {"startEpoch": 1}, "experiments": {"mode": "cascade-rewind", "methods": ["WT"]}},
    "gradual": {
        "retraining": {"numEpochs": 3},
        "gradual": {"endEpoch": 2},
        "experiments": {"mode": "gradual", "methods": ["WT", "SVD"]},
    },
    "lc": {"lc": {"steps": 2, "iterations": 2, "muInit": 0.02}, "experiments": {"mode": "lc", "methods": ["WT", "SVD"]}},
    "search": {"experiments": {"methods": ["FT"], "spacing": (), "search": {"accuracyLoss": 0.9, "samples": 2}}},
    "latency": {"experiments": {"methods": ["SVD"], "budget": {"latency": 0.9, "memory": 0.95}}},
    "tune": {"retraining": {"tune": {"optimizerKwargs.lr": [0.1, 0.01]}}, "experiments": {"methods": ["WT"]}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_and_its_files_hold_tensors_of_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiment.run.machine.find_machine", lambda device: Machine(SECOND))
    monkeypatch.setattr("experiment.report.write_report", lambda folder: Report([], *[folder / "report"] * 4))
    values = {key: {**BASE.get(key, {}), **RUNS[name].get(key, {})} for key in {**BASE, **RUNS[name]}}
    if not values["experiments"].get("spacing"):
        del values["experiments"]["spacing"]
    Path("small.yaml").write_text(yaml.safe_dump(values))
    assert main(["small.yaml", "-j", "1", "-q"]) == 0
    frame = pd.read_csv("data/results/small/results.csv")
    assert set(frame["status"]) == {"done"}
    files = [path for path in Path("data").rglob("*.pt*")]
    assert files
    for path in files:
        content = torch.load(path, weights_only=True)
        assert {tensor.device.type for tensor in tensors_in(content)} <= {"cpu"}
