"""Several test sets: one row each, of networks that are trained, compressed and kept once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import load_network, load_results
from experiment.datasets.corruptions.apply import corrupt
from experiment.datasets.loading import load_source
from experiment.main import main
from experiment.random_streams import seed_of
from experiment.run.disk.results_table import COLUMNS

NOISY = {"name": "Digits", "corruption": "gaussian_noise", "severity": 5}
FOGGY = {"name": "Digits", "corruption": "fog", "severity": 4, "label": "foggy"}


def frame(folder: Path) -> pd.DataFrame:
    return load_results(folder / "data/results/small")


def cells(folder: Path) -> dict[str, Any]:
    found = (folder / "data/results/small/cells").glob("*/result.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def predictions_on(network: torch.nn.Module, corruption: str, severity: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels: Any = load_source("Digits", {}, Path(), False, 10).items
    seeds = [seed_of("corruption", corruption, "test", i) for i in range(len(pixels))]
    images = [x.permute(1, 2, 0).numpy() for x in pixels.images]
    made = np.stack([corrupt(x, corruption, severity, seed) for x, seed in zip(images, seeds, strict=True)])
    with torch.no_grad():
        scores = network((torch.from_numpy(made).permute(0, 3, 1, 2) / 255 - 0.3) / 0.3)
    return scores.argmax(1), pixels.labels


@pytest.mark.usefixtures("no_plots")
def test_every_test_set_has_rows_of_the_same_networks(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small["experiments"] |= {"methods": ["WT"], "spacing": [{"type": "manual", "values": [0.3]}]}
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    alone = frame(in_tmp)
    assert tuple(alone.columns) == COLUMNS
    keys = set(cells(in_tmp))
    small["experiments"]["datasetTest"] = ["Digits"]  # named: another key than the test part by default
    named = write(small)
    small["experiments"]["datasetTest"] = "Digits"
    single = write(small, "param/single.yaml")
    for path in (named, single):
        assert main([str(path), "-j", "1", "-q"]) == 0
    lists, texts = (load_results(in_tmp / f"data/results/{name}") for name in ("small", "single"))
    assert lists["cell"].tolist() == texts["cell"].tolist()

    small["experiments"] |= {"datasetTest": ["Digits", NOISY, FOGGY], "measure": ["noise"], "noiseLevels": [0.5, 2]}
    capsys.readouterr()
    assert main([str(write(small)), "-j", "1"]) == 0
    said = capsys.readouterr().err
    assert "which was tested on other data" in said
    assert "measuring the response of 2 networks to noise" in said
    found = frame(in_tmp)
    assert found["dataset_test"].tolist() == ["Digits", "Digits+gaussian_noise-5", "foggy"] * 2
    assert found["dataset"].unique().tolist() == ["Digits"]
    assert found["cell"].nunique() == 2
    assert found["cell"].iloc[3][:10] in {key.rpartition("-")[2][:10] for key in keys}
    shared = ["label", "loss", "top1", "top5", "top1_before_retraining", "top1_reference", "keep_parameters"]
    clean = found[found["dataset_test"] == "Digits"]
    assert clean[shared].to_numpy().tolist() == alone[shared].to_numpy().tolist()
    foggy = []
    for method in ("Reference", "WT"):
        network = load_network(in_tmp / "data/results/small", method=method)
        rows = found[found["method"] == method].set_index("dataset_test")
        for test, corruption, severity in (("Digits+gaussian_noise-5", "gaussian_noise", 5), ("foggy", "fog", 4)):
            predicted, labels = predictions_on(network, corruption, severity)
            assert rows.loc[test, "top1"] == float((predicted == labels).double().mean())
        assert rows.loc["foggy", "top1_reference"] == found["top1"].iloc[2]
        foggy.append(predicted)
    assert found["flips"].iloc[-1] == float((foggy[0] != foggy[1]).double().mean()) > found["flips"].iloc[3]
    noise = [f"noise_{what}_{eps}" for what in ("agreement", "distance", "excess_error") for eps in ("0.5", "2")]
    assert tuple(found.columns) == (*COLUMNS, *noise)
    assert found.loc[0, noise[:4]].tolist() == [1, 1, 0, 0]
    assert 0.5 < found.loc[3, "noise_agreement_2"] < 1
    assert found.loc[3, "noise_distance_0.5"] > 0
    assert main([str(write(small)), "-j", "1"]) == 0
    assert "measuring" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        (["Digits", "Digits"], "experiments.datasetTest[1]: is the second test set called Digits"),
        (["Digits", "Digitz"], "experiments.datasetTest[1]: unknown dataset 'Digitz'. Did you mean 'Digits'?"),
        (
            NOISY | {"corruption": "gausian_noise"},
            "datasetTest.corruption: unknown corruption 'gausian_noise'. Did you",
        ),
        (
            {"name": "Digits", "corruption": "Gauss"},
            "unknown corruption 'Gauss'. Known are gaussian_noise, shot_noise,",
        ),
        ({"name": "DigitScenes"}, "has 11 classes. Set outputSize: 11, or choose another dataset."),
        ({"name": "Digits", "severity": 3}, "has no effect without corruption"),
        (NOISY | {"severity": 6}, "severity"),
        (["Digits", NOISY | {"corruption": "saturate"}], "datasetTest[1]: dataset Digits: saturate has no"),
        (["Digits", "CIFAR10_C_Gaus_3"], "Did you mean 'CIFAR10_C_Gauss_3'?"),
    ],
)
def test_wrong_test_sets_are_named_before_training(
    write: Any, small: dict[str, Any], capsys: pytest.CaptureFixture[str], tests: Any, message: str
) -> None:
    small["experiments"]["datasetTest"] = tests
    assert main([str(write(small)), "-j", "1"]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
