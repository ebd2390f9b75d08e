"""Experiments on a network whose attention is unfused: the reference stays as its factory makes it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment import evaluate, load_network
from experiment.layers.unfused.multihead_attention import UnfusedAttention
from experiment.main import main

OWN = """
from torch import nn


class Encoder(nn.Module):
    def __init__(self, size):
        super().__init__()
        layer = nn.TransformerEncoderLayer(28, 2, 32, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(28, size)

    def forward(self, x):
        return self.head(self.encoder(x.flatten(1, 2)).mean(1))


def make(input_shape, output_size):
    return Encoder(output_size)
"""


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("mode", ["cascade-rewind", "lc"])
def test_an_experiment(
    mode: str, write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_tmp / "rows_attend.py").write_text(OWN)
    monkeypatch.syspath_prepend(in_tmp)
    small["network"]["name"] = "rows_attend:make"
    small["experiments"] |= {"mode": mode, "methods": ["WT", "SVD"]}
    small["experiments"]["spacing"][0]["values"] = [0.7, 0.5]
    small["retraining"] = {} if mode == "lc" else {"startEpoch": 1}
    if mode == "lc":
        small["lc"] = {"steps": 1}
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 0
    rows = pd.read_csv(in_tmp / "data/results/small/results.csv")
    assert list(rows["status"]) == ["done"] * 5
    assert (rows["parameters"] <= rows["keep_target"] * rows["parameters"].max()).all()
    reference = load_network(path, method="Reference")
    assert "encoder.layers.0.self_attn.in_proj_weight" in reference.state_dict()
    for method in ("WT", "SVD"):
        network = load_network(path, method=method, keep=0.5)
        assert isinstance(network.get_submodule("encoder.layers.0.self_attn"), UnfusedAttention)
        row = rows[(rows["label"] == method) & (rows["keep_target"] == 0.5)].iloc[0]
        assert evaluate(path, network)["top1"] == pytest.approx(row["top1"])
