"""Methods whose settings decide the size: one cell a network and repetition, whatever the grid of keep ratios."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment import load_network
from experiment.config import load
from experiment.errors import ConfigError
from experiment.main import main
from experiment.report.plots import gallery
from experiment.run.grid.cells import Cell
from experiment.run.grid.plan import Machine, plan_experiment

OWN = """
from dataclasses import dataclass

from experiment.methods.base import Budget
from experiment.methods.masks.settings import WeightSettings
from experiment.methods.masks.magnitude import wt
from experiment.registry import MethodEntry


@dataclass(frozen=True)
class HalfSettings:
    fixed_size: bool = True


class Half:
    def __init__(self, settings):
        self.method = wt(WeightSettings())
        self.analyse, self.fill = self.method.analyse, self.method.fill

    def plan(self, analysis, budget):
        original = sum(p.numel() for p in analysis.start.state.network.parameters())
        return self.method.plan(analysis, Budget("parameters", original // 2, original))


ENTRY = MethodEntry("Half", HalfSettings, "own_half:Half", "weight")
"""


@pytest.fixture
def own(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_tmp / "own_half.py").write_text(OWN)
    monkeypatch.syspath_prepend(in_tmp)


def cells(path: Path) -> tuple[Cell, ...]:
    return plan_experiment(load(path), Machine("cpu")).cells


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("mode", ["retrain", "retrain-rewind", "cascade", "cascade-rewind"])
def test_one_cell_a_network_and_repetition_in_every_mode(write: Any, small: dict[str, Any], mode: str) -> None:
    small["experiments"] |= {"methods": ["own_half:ENTRY", "WT"], "mode": mode, "numNets": 2, "numRepetitions": 2}
    own = [cell for cell in cells(write(small)) if cell.label == "Half"]
    assert [(c.net, c.repetition) for c in own] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {(c.keep, c.keep_target, c.between, c.fixed_size) for c in own} == {(1.0, None, (), True)}
    before = {cell.key for cell in own}
    small["experiments"]["spacing"][0]["values"] = [0.9, 0.8, 0.7]
    after = [cell for cell in cells(write(small)) if cell.label == "Half"]
    assert {cell.key for cell in after} == before, "the grid of the others is no part of its key"


@pytest.mark.usefixtures("own")
def test_random_controls_of_a_cascade_start_from_the_one_ticket(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"methods": ["own_half:ENTRY"], "mode": "cascade", "rewind": "random"}
    del small["experiments"]["spacing"]
    (chain,) = plan_experiment(load(write(small)), Machine("cpu")).chains
    assert chain.tickets is not None
    assert len(chain.cells) == len(chain.tickets.cells) == 1


@pytest.mark.usefixtures("own")
def test_keep_ratios_may_be_left_out_where_no_method_asks_for_one(write: Any, small: dict[str, Any]) -> None:
    missing = "spacing: is required and missing: the keep ratios"
    del small["experiments"]["spacing"]
    small["experiments"]["methods"] = ["own_half:ENTRY", "Reference"]
    assert [cell.label for cell in cells(write(small))] == ["Reference", "Half"]
    for methods in (["own_half:ENTRY", "WT"], ["WT"], ["Reference"], []):
        small["experiments"]["methods"] = methods
        with pytest.raises(ConfigError, match=missing) as caught:
            cells(write(small))
        assert [p.partition(": ")[2] for p in caught.value.problems] == [f"experiments.{missing}."], methods
    small["experiments"]["mode"] = "train"
    assert [cell.label for cell in cells(write(small))] == ["Reference"]


@pytest.mark.usefixtures("own")
def test_a_wrong_setting_is_told_and_nothing_made_up_beside_it(write: Any, small: dict[str, Any]) -> None:
    del small["experiments"]["spacing"]
    small["experiments"]["methods"] = [{"name": "own_half:ENTRY", "settings": {"sise": 1}}]
    with pytest.raises(ConfigError) as caught:
        cells(write(small))
    assert len(caught.value.problems) == 1
    assert "sise" in str(caught.value)


@pytest.mark.usefixtures("own")
def test_a_run_with_report_beside_a_grid(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "GALLERY", ())  # trade-offs take long
    small["experiments"] |= {"methods": ["own_half:ENTRY", "WT"], "measure": ["rank"]}
    small["retraining"] = {"startEpoch": 0}
    small["customizations"] = [{"key": ["retraining", "startEpoch"], "value": value} for value in (0, 1)]
    path = str(write(small))
    assert main([path, "--plan"]) == 0
    assert "0.5, 0.1\n" in capsys.readouterr().out
    assert main([path, "--plan=json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["keep_target"] for t in told if t["label"] == "Half"] == [None, None]
    assert main([path, "-j", "1", "-q"]) == 0
    folder = in_tmp / "data/results/small"
    frame = pd.read_csv(folder / "results.csv")
    half = frame[frame["label"] == "Half"]
    assert set(half["status"]) == {"done"}
    assert half["keep_target"].isna().all()
    assert ((half["keep_parameters"] - 0.5).abs() < 1e-4).all()
    assert (folder / "report.html").is_file()
    assert {"Half", "WT"} <= set((folder / "report.md").read_text().replace("|", " ").split())
    variant = str(half["variant"].iloc[0])
    assert load_network(folder, label="Half", variant=variant) is not None
    with pytest.raises(ConfigError, match=r"Choose between: Half retraining"):
        load_network(folder, label="Half", variant=variant, keep=0.5)
