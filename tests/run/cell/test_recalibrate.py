"""Re-estimated BatchNorm statistics in whole experiments: one-shot, and in a cascade with steps in between."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiment import load_network
from experiment.main import main

NETWORK = """
from torch import nn

def make(input_shape, output_size):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, output_size),
    )
"""


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("mode", ["retrain", "cascade"])
def test_statistics_alone_are_changed(
    write: Any, small: dict[str, Any], in_tmp: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_tmp / "recalibrated_net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(in_tmp)
    small["network"]["name"] = "recalibrated_net:make"
    small["training"] |= {"numEpochs": 1}
    small["retraining"] = {"numEpochs": 0}
    again = {"name": "SVD", "label": "SVD + BN", "recalibrate": True}
    small["experiments"] |= {"methods": ["SVD", again], "mode": mode, "retrainIterations": 1}
    path = write(small)
    assert main([str(path), "-j", "1", "-q", "--set", "experiments.spacing[0].values=[0.7, 0.5]"]) == 0
    (table,) = in_tmp.glob("data/results/small*/results.csv")
    frame = pd.read_csv(table).set_index("label")
    assert set(frame["status"]) == {"done"}
    assert frame.loc["SVD", "parameters"] == frame.loc["SVD + BN", "parameters"]
    assert frame.loc["SVD", "loss"] != frame.loc["SVD + BN", "loss"]
    plain, made = (load_network(table.parent, label=label, keep=0.5).state_dict() for label in ("SVD", "SVD + BN"))
    changed = {name for name, tensor in made.items() if not torch.equal(tensor, plain[name])}
    assert changed == {f"{norm}.running_{what}" for norm in (1, 4) for what in ("mean", "var")}


@pytest.mark.usefixtures("no_plots")
def test_a_network_without_batch_norm_fails_those_cells_and_says_why(
    write: Any, small: dict[str, Any], in_tmp: Path
) -> None:
    small["retraining"] = {"numEpochs": 0}
    small["experiments"]["methods"] = ["WT", {"name": "SVD", "recalibrate": True}]
    assert main([str(write(small)), "-j", "1", "-q"]) == 1
    frame = pd.read_csv(in_tmp / "data/results/small/results.csv").set_index("method")
    assert set(frame.loc["WT", "status"]) == {"done"}
    assert set(frame.loc["SVD", "status"]) == {"failed"}
    assert frame.loc["SVD", "error"].str.contains("recalibrate has no effect: the network has no BatchNorm").all()
