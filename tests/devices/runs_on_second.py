"""Whole runs on another device: training, every mode, measuring and evaluation; and files that any device reads."""

import contextlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from second_device import SECOND, register
from torch import Tensor, nn

from experiment import LC, compress, load_network, save_network
from experiment.datasets.python_samples import PairData
from experiment.errors import InfeasibleBudget
from experiment.main import main
from experiment.measure.latency import measure_latency
from experiment.random_streams import generator, seeded
from experiment.report import Report
from experiment.run.grid.hardware import Machine
from experiment.tensor_file import tensors_in
from experiment.training.allowed_names import LOSSES, OPTIMIZERS
from experiment.training.factories import make_loss
from experiment.training.loop import TrainingLoop
from experiment.training.settings import DistillationSpec, PenaltySpec, TrainSettings

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
        "experiments": {
            "methods": ["WT", {"name": "Quantize", "settings": {"dtype": "int4"}}],
            "measure": ["rank", "bytes", "noise", "sensitivity"],
        },
    },
    "cascade-rewind": {"retraining": {"startEpoch": 1}, "experiments": {"mode": "cascade-rewind", "methods": ["WT"]}},
    "gradual": {
        "retraining": {"numEpochs": 2},
        "gradual": {"endEpoch": 1},
        "experiments": {"mode": "gradual", "methods": ["SVD"]},
    },
    "lc": {"lc": {"steps": 2, "iterations": 2, "muInit": 0.02}, "experiments": {"mode": "lc", "methods": ["WT"]}},
    "search": {"experiments": {"methods": ["FT"], "spacing": (), "search": {"accuracyLoss": 0.9, "samples": 2}}},
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
    files = list(Path("data").rglob("*.pt*"))
    assert files
    for path in files:
        content = torch.load(path, weights_only=True)
        assert {tensor.device.type for tensor in tensors_in(content)} <= {"cpu"}


def net() -> nn.Sequential:
    with seeded("net"):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, 5)
        )


def samples() -> tuple[Tensor, Tensor]:
    random = generator("samples")
    return torch.randn(48, 1, 6, 6, generator=random), torch.randint(5, (48,), generator=random)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_that_was_interrupted_continues(optimizer: str, tmp_path: Path) -> None:
    data = PairData("train", samples(), torch.device(SECOND))
    settings = TrainSettings(
        num_epochs=2, batch_size=16, optimizer=optimizer, optimizer_kwargs={"lr": 0.01}, early_stop_epoch=0,
        loss_kwargs={"weight": [1.0, 2.0, 1.0, 1.0, 1.0]}, precision="bf16", channels_last=True,
        penalties=(PenaltySpec(l1=0.001, proximal=True), PenaltySpec(l2=0.001)), distillation=DistillationSpec(),
    )  # fmt: skip

    def loop(network: nn.Module, path: Path) -> TrainingLoop:
        return TrainingLoop(
            network, data, settings, valid=data, stream=("s",), device=SECOND, checkpoint=path, teacher=net()
        )

    whole, parts = net(), net()
    loop(whole, tmp_path / "whole").run()
    loop(parts, tmp_path / "parts").run(until=1)
    loop(parts, tmp_path / "parts").run()
    assert {tensor.device.type for tensor in parts.state_dict().values()} == {SECOND}
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss: str) -> None:
    outputs, y = torch.randn(4, 5, device=SECOND), torch.tensor([0, 1, 4, 2], device=SECOND)
    whole = nn.functional.one_hot(y, 5).float()
    target = y if loss in ("CrossEntropyLoss", "CrossEntropyLossWithAuxiliary", "MultiMarginLoss", "NLLLoss") else whole
    assert make_loss(loss, {}, SECOND)(outputs, target).device.type == SECOND


def test_lc_in_python_and_its_network_in_a_file(tmp_path: Path) -> None:
    x, y = samples()
    lc = LC(net(), "FT", keep=0.6, train=(x, y), valid=(x, y), steps=2, iterations=2, device=SECOND, progress=False)
    small = lc.run()
    save_network(lc.result, tmp_path / "small.pt")
    loaded = load_network(tmp_path / "small.pt", network=net())
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert torch.equal(loaded(x), small(x.to(SECOND)).cpu())


def test_latency_and_memory_as_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.measure.latency_model.SECONDS", 1e-4)
    monkeypatch.setattr("experiment.measure.latency_model.ROUND", 1e-3)
    x, y = samples()
    network, x = net().eval().to(SECOND), x.to(SECOND)
    small = compress(network, "FT", budget={"latency": "100 s", "memory": 0.95}, example=x[:1], data=(x, y))
    assert small.amounts["latency"].measured > 0
    assert measure_latency(small.network, (1, 6, 6), batch=2, threads=1, seconds=0.001).median_ms > 0
    with contextlib.suppress(InfeasibleBudget):  # as fast as this machine is at present
        compress(network, "ALDS", keep=0.9, budget="latency", example=x[:1], data=(x, y))
