"""A network, a dataset and a method of the user's own, named in a parameter file by their import paths."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment import load_network
from experiment.main import main

OWN = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from experiment.methods.masks.settings import WeightSettings
from experiment.registry import MethodEntry


def make(input_shape, output_size, width=8):
    channels, height, _ = input_shape
    size = width * (height - 2) ** 2
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(size, output_size))


def load(root, train, size=200):
    generator = torch.Generator().manual_seed(int(train))
    labels = torch.randint(2, (size,), generator=generator)
    images = torch.randint(100, (size, 1, 8, 8), generator=generator) + 100 * labels[:, None, None, None]
    return TensorDataset(images.to(torch.uint8), labels)


ENTRY = MethodEntry("Mine", WeightSettings, "experiment.methods.masks.magnitude:wt", "weight")
"""


@pytest.mark.usefixtures("no_plots")
def test_everything_may_be_the_users_own(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (in_tmp / "my_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(in_tmp)
    small["network"] = {
        "name": "my_own:make",
        "settings": {"width": 4},
        "dataset": {"name": "my_own:load", "settings": {"size": 100}},
        "outputSize": 2,
    }
    small["training"] |= {"transformsTrain": [], "batchSize": 10}
    small["experiments"]["methods"] = ["my_own:ENTRY", "FT"]
    small["experiments"]["spacing"][0]["values"] = [0.8, 0.5]
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 0
    frame = pd.read_csv(in_tmp / "data/results/small/results.csv")
    assert set(frame["status"]) == {"done"}
    assert list(frame["label"]) == ["Reference", "Mine", "Mine", "FT", "FT"]
    assert frame["top1"].iloc[0] > 0.9
    assert load_network(path, method="FT", keep=0.5)[0].out_channels < 4  # type: ignore[index, union-attr]
    small["network"]["dataset"]["settings"]["sise"] = 3
    capsys.readouterr()
    assert main([str(write(small)), "-j", "1", "-q"]) == 2
    assert "sise" in capsys.readouterr().err


@pytest.mark.usefixtures("no_plots")
def test_a_change_of_the_users_code_is_a_change_of_the_key(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiment.config import load
    from experiment.run.grid.plan import Machine, plan_experiment

    (in_tmp / "my_other.py").write_text(OWN)
    monkeypatch.syspath_prepend(in_tmp)
    small["network"]["name"] = "my_other:make"
    path = write(small)
    before = plan_experiment(load(path), Machine("cpu")).cells[0].key
    (in_tmp / "my_other.py").write_text(OWN + "\n# changed\n")
    assert plan_experiment(load(path), Machine("cpu")).cells[0].key != before
