"""Experiments on networks that are named as `transformers:...`; need the extra hf."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiment import load_network
from experiment.config import load
from experiment.main import main
from experiment.run.grid.hardware import Machine
from experiment.run.grid.plan import plan_experiment

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

VIT = {
    "image_size": 28, "patch_size": 7, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip


@pytest.mark.usefixtures("no_plots")
def test_an_experiment_on_a_network_of_transformers(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["network"] = {
        "name": "transformers:ViTForImageClassification",
        "settings": {"config": VIT},
        "dataset": "Digits",
        "outputSize": 10,
    }
    small["training"] |= {
        "optimizer": "Adam", "optimizerKwargs": {"lr": 0.01}, "numEpochs": 4, "transformsTrain": [], "lrSchedulers": [],
        "transformsFinal": [{"type": "ToTensor"}, {"type": "Normalize", "kwargs": {"mean": [0.3], "std": [0.38]}}],
    }  # fmt: skip
    small["experiments"]["methods"] = ["WT"]
    small["experiments"]["spacing"][0]["values"] = [0.7]
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 0
    frame = pd.read_csv(in_tmp / "data/results/small/results.csv")
    assert set(frame["status"]) == {"done"}
    assert frame["top1"].min() > 0.25  # 0.1 by chance
    network = load_network(path, method="WT", keep=0.7)
    assert type(network).__name__ == "ViTForImageClassification"
    assert network(torch.zeros(2, 1, 28, 28)).logits.shape == (2, 10)


def test_the_key_follows_the_content_of_the_folder(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    def key() -> str:
        (reference,) = plan_experiment(load(path), Machine("cpu")).references
        return reference.reference.key

    folder = in_tmp / "mine"
    transformers.ViTConfig(**VIT).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"first")
    small["network"]["name"] = "transformers:ViTForImageClassification"
    small["network"]["settings"] = {"config": "mine"}
    path = write(small)
    keys = [key(), key()]
    (folder / "model.safetensors").write_bytes(b"second")
    keys.append(key())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    keys.append(key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
