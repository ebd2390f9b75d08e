"""Quantize in the runner: retrained with rounding in the loop, stored in few bits, counted with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import evaluate, load_network
from experiment.layers.masks import bake_masks, stored
from experiment.layers.quantized_weights import named_dtypes
from experiment.main import main

RESULTS = Path("data/results/small")


@pytest.mark.usefixtures("no_plots")
def test_retrained_networks_are_on_the_grid(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    more = {"int8": {}, "float16": {}, "int4": {"group_size": 32, "rounding": "compensated"}}
    methods = [
        {"name": "Quantize", "label": dtype, "settings": {"dtype": dtype, "ignore": ["fc3"], **own}}
        for dtype, own in more.items()
    ]
    small["experiments"] |= {"methods": [*methods, "Fake"], "measure": ["bytes"]}
    small["experiments"]["spacing"][0]["values"] = [1.0]
    path = write(small)
    assert main([str(path), "-j", "1", "-q"]) == 0
    frame = pd.read_csv(in_tmp / RESULTS / "results.csv").set_index("label")
    assert set(frame["status"]) == {"done"}
    assert list(frame.loc[list(more), "epochs"]) == [1, 1, 1]
    weights, rows = 784 * 300 + 300 * 100, 400
    last = (1000 + 10) * 4
    assert frame.loc["int8", "bytes_dense"] == weights + 4 * rows + 4 * rows + last
    assert frame.loc["float16", "bytes_dense"] == 2 * (weights + rows) + last
    assert frame.loc["int4", "bytes_dense"] == weights / 2 + 4 * (300 * 25 + 100 * 10) + 4 * rows + last
    for column in ("bytes_values", "bytes_sparse", "bytes_bitmask", "bytes_csr"):
        assert list(frame[column]) == list(frame["bytes_dense"])
    for label, share in (("int8", 0.27), ("float16", 0.52), ("int4", 0.18)):
        assert frame.loc[label, "bytes_file"] < share * frame.loc["Fake", "bytes_file"]
        network = load_network(path, label=label)
        assert set(named_dtypes(network).values()) == {"int4/32" if label == "int4" else label}
        plain = bake_masks(network)
        assert evaluate(path, plain)["top1"] == evaluate(path, network)["top1"] == frame.loc[label, "top1"]
        reference = load_network(path, method="Reference")
        for name in ("fc1", "fc2"):
            w = plain.get_submodule(name).weight.detach().numpy()
            assert not np.array_equal(w, reference.get_submodule(name).weight.detach().numpy())
            if label == "float16":
                assert np.array_equal(w, w.astype(np.float16).astype(np.float32))
            else:
                w = w if label == "int8" else w[:, : 32 * (w.shape[1] // 32)].reshape(-1, 32)
                steps = w / (np.abs(w).max(1, keepdims=True) / (127 if label == "int8" else 7))
                np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        assert torch.equal(
            stored(network.get_submodule("fc1"), "weight"), plain.fc1.weight
        )  # no more than that is kept
        assert not np.array_equal(plain.fc3.weight.detach(), plain.fc3.weight.detach().half().float())
    assert (frame["top1_before_retraining"] - frame.loc["Reference", "top1"]).abs().max() < 0.03
    assert abs(frame.loc["int8", "top1"] - frame.loc["Fake", "top1"]) < 0.03
    assert frame["top1"].min() > 0.8
