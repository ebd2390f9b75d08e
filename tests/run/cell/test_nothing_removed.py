"""A step that removes nothing: tested as it is, not retrained, and said so."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from experiment.layers.build import build
from experiment.layers.masks import same_support
from experiment.layers.plan import Factors, Kept, Plan
from experiment.main import main

TESTED = ["loss", "top1", "top5"]


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "data/results/small/results.csv").set_index(["method", "keep_target"])


def notices(folder: Path) -> dict[str, str | None]:
    found = folder.glob("data/results/small/cells/*/result.json")
    return {path.parent.name.rpartition("-")[0]: json.loads(path.read_text()).get("notice") for path in found}


@pytest.mark.usefixtures("no_plots")
def test_keep_everything_has_the_figures_of_the_reference(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small["experiments"]["methods"] = ["WT", "FT", "SVD", "Fake"]
    small["experiments"]["spacing"][0]["values"] = [1.0, 0.5]
    assert main([str(write(small)), "-j", "1"]) == 0
    frame = rows(in_tmp)
    reference = frame.loc[("Reference", 1.0)]
    for method in ("WT", "FT", "SVD"):
        row = frame.loc[(method, 1.0)]
        assert (row["epochs"], row["status"]) == (0, "done")
        assert list(row[TESTED]) == list(reference[TESTED])
        assert row["top1_before_retraining"] == row["top1"]
        assert row["keep_parameters"] == 1
        assert frame.loc[(method, 0.5), "epochs"] == 1
    assert set(frame.loc["Fake", "epochs"]) == {1}, "the control is retrained although it keeps everything"
    told = notices(in_tmp)
    assert {name for name, notice in told.items() if notice} == {f"{m}-n0-r0-1" for m in ("WT", "FT", "SVD")}
    assert "WT keep 1 net 0: removes nothing" in capsys.readouterr().err


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("mode", ["cascade", "cascade-rewind"])
def test_in_a_cascade_the_figures_are_those_of_the_step_before(
    write: Any, small: dict[str, Any], in_tmp: Path, mode: str
) -> None:
    small["experiments"] |= {"methods": ["WT", "FT", "SVD"], "mode": mode}
    # the second keeps the same places, filters and ranks: hardly a parameter less is allowed
    small["experiments"]["spacing"][0]["values"] = [0.3, 0.29999, 0.2]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    frame = rows(in_tmp)
    for method in ("FT", "SVD"):
        first, second, third = (frame.loc[(method, keep)] for keep in (0.3, 0.29999, 0.2))
        assert list(frame.loc[method, "epochs"]) == [1, 0, 1]
        assert second["parameters"] == first["parameters"] > third["parameters"]
        assert list(second[TESTED]) == pytest.approx(list(first[TESTED]), rel=1e-5)
    assert list(frame.loc["WT", "epochs"]) == [1, 1, 1], "a few weights less are less"


@pytest.mark.usefixtures("no_plots")
def test_fresh_random_weights_are_trained_whatever_is_removed(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["experiments"] |= {"methods": ["WT"], "rewind": "random"}
    small["experiments"]["spacing"][0]["values"] = [1.0]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert rows(in_tmp).loc[("WT", 1.0), "epochs"] == 1
    assert set(notices(in_tmp).values()) == {None}


def test_supports_are_compared_by_shapes_and_masks() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    mask = torch.ones(5, 6, dtype=torch.bool)
    whole, masked = mask.clone(), mask.clone()
    masked[2, 3] = False
    other = mask.clone()
    other[3, 2] = False
    plans = [
        Plan(),
        Plan(masks={"0.weight": masked}),
        Plan(masks={"0.weight": other}),
        Plan(factors={"0": Factors(2)}),
        Plan(factors={"0": Factors(1)}),
        Plan(kept={"0": Kept(out=(0, 1, 3)), "2": Kept(inputs=(0, 1, 3))}),
    ]
    for i, one in enumerate(plans):
        for j, two in enumerate(plans):
            assert same_support(build(network, one), build(network, two)) == (i == j)
    assert same_support(build(network, Plan(masks={"0.weight": whole})), network)
