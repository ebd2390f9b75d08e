"""Networks of factors through the whole runner, and a grid of one layer's ranks with its plot."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from experiment import load_network, load_results
from experiment.config import load
from experiment.main import main
from experiment.run.grid.plan import Machine, plan_experiment

FACTORED = {"rank": 20, "factored": ["fc1"], "factored_init": "gaussian"}


@pytest.mark.usefixtures("no_plots")
def test_factors_are_trained_compressed_and_loaded_like_layers(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["network"]["settings"] = FACTORED
    small["experiments"] |= {"measure": ["rank"], "methods": ["WT"]}
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    results = load_results("param/small.yaml")
    assert set(results["status"]) == {"done"}
    network = load_network("param/small.yaml", method="Reference")
    assert isinstance(network.fc1, nn.Sequential)
    assert network.fc1.encoder.weight.shape == (20, 784)
    ranks = pd.read_csv(next(in_tmp.glob("data/results/small/cells/Reference*/ranks.csv")))
    assert list(ranks["layer"].unique()) == ["fc1", "fc2", "fc3"]
    assert (ranks.loc[ranks["layer"] == "fc1", "effective_rank"] <= 20 + 1e-6).all()
    sparse = load_network("param/small.yaml", method="WT", keep=0.1)
    assert float((sparse.fc1.decoder.weight == 0).float().mean()) > 0.5


def test_settings_of_factors_give_another_key_and_their_absence_the_one_of_before(
    write: Any, small: dict[str, Any]
) -> None:
    keys = []
    for settings in ({}, FACTORED):
        small["network"]["settings"] = settings
        plan = plan_experiment(load(write(small)), Machine("cpu"))
        keys.append(plan.references[0].reference.key)
    assert keys[0] != keys[1]
    del small["network"]["settings"]
    assert plan_experiment(load(write(small)), Machine("cpu")).references[0].reference.key == keys[0]


def test_a_rank_that_no_layer_has_fails_its_cells_with_the_reason(
    write: Any, small: dict[str, Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    small["network"]["settings"] = {"rank": 200, "factored": ["fc3"]}
    assert main([str(write(small)), "-j", "1", "-q"]) in (1, 2)
    assert "'fc3' has full rank 10" in caplog.text + "".join(capsys.readouterr())


def test_ranks_of_one_layer_trained_and_from_scratch(
    write: Any, small: dict[str, Any], in_tmp: Path, no_plots: None
) -> None:
    small["retraining"] = {"startEpoch": 2}
    total, others = 266_610, 266_610 - 235_200
    keeps = [round((others + 1084 * rank) / total + 1e-5, 5) for rank in (40, 8)]
    small["experiments"] |= {
        "methods": [{"name": name, "settings": {"layers": ["fc1"]}} for name in ("SVD", "RSVD")],
        "spacing": [{"type": "manual", "values": keeps}],
    }
    small["customizations"] = [{"key": ["experiments", "rewind"], "value": value} for value in ("none", "random")]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    folder = in_tmp / "data/results/small"
    for rank, keep in zip((40, 8), keeps, strict=True):
        layers = pd.read_csv(next(folder.glob(f"cells/experiments.rewind=none-RSVD-*-{keep:.6g}-*/layers.csv")))
        assert list(layers["rank"].dropna()) == [rank]
        row = layers.set_index("layer").loc["fc1"]
        assert row["relative_error_exact"] <= row["relative_error"]  # its bound
        network = load_network("param/small.yaml", method="SVD", keep=keep, variant="experiments.rewind=random")
        assert network.fc1.encoder.weight.shape == (rank, 784)
        kept = load_network("param/small.yaml", method="SVD", keep=keep, variant="experiments.rewind=none")
        assert not torch.equal(network.fc3.weight, kept.fc3.weight)
