"""Searched keep ratios: the smallest network within a loss of validation accuracy, against ordinary cells."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from experiment import load_network
from experiment.config import Search, load
from experiment.errors import ConfigError, InfeasibleBudget, TrainingDiverged
from experiment.lc.lc_checkpoint import LCCheckpoint
from experiment.main import main
from experiment.run.cell import search as searching
from experiment.run.cell.events import Advanced
from experiment.run.cell.search import Found, search
from experiment.run.disk.store import Store
from experiment.run.grid.plan import Cell, Machine, plan_experiment
from experiment.training.checkpoint import Checkpoint

TIMES = ["seconds_compress", "seconds_retrain"]
GRID = {"type": "manual", "values": [0.5, 0.1]}


@pytest.fixture
def small(small: dict[str, Any]) -> dict[str, Any]:
    """The small experiment with a search in the place of its grid."""
    del small["experiments"]["spacing"]
    small["experiments"] |= {"methods": ["WT", "FT"], "search": {"accuracyLoss": 0.03, "samples": 4, "smallest": 0.01}}
    small["retraining"] = {"numEpochs": 2, "startEpoch": 0}
    return small


def as_lc(small: dict[str, Any]) -> None:
    small["experiments"]["mode"] = "lc"
    small["lc"] = {"steps": 3, "iterations": 10, "iterationsFirst": 20, "muInit": 0.02}


def run(path: Path, *more: str) -> int:
    return main([str(path), "-j", "1", "-q", *more])


def table(name: str = "small", results: str = "data/results") -> pd.DataFrame:
    return pd.read_csv(f"{results}/{name}/results.csv").drop(columns=TIMES)


def samples(label: str, results: str = "data/results") -> pd.DataFrame:
    (path,) = Path(f"{results}/small/cells").glob(f"{label}-*/search.csv")
    return pd.read_csv(path)


def cell_file(name: str, cell: str, file: str) -> pd.DataFrame:
    (path,) = Path(f"data/results/{name}/cells").glob(f"{cell}-*/{file}")
    return pd.read_csv(path).drop(columns="seconds", errors="ignore")


def history(name: str, cell: str) -> pd.DataFrame:
    return cell_file(name, cell, "history.csv")


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("mode", "loss"), [("retrain", 0.03), ("retrain-rewind", 0.03), ("lc", 0.2)])
def test_it_is_the_smallest_ordinary_cell_within_the_loss(
    write: Any, small: dict[str, Any], mode: str, loss: float
) -> None:
    if mode == "lc":
        as_lc(small)
    small["experiments"] |= {"mode": mode, "measure": ["rank"]}
    small["experiments"]["search"]["accuracyLoss"] = loss
    assert run(write(small)) == 0
    least = history("small", "Reference")["valid_top1"].iloc[-1] - loss - 1e-9
    del small["experiments"]["search"]
    for label in ("WT", "FT"):
        tried = samples(label).set_index("keep")
        small["experiments"] |= {"methods": [label], "spacing": [{"type": "manual", "values": list(tried.index)}]}
        assert run(write(small, f"param/{label}.yaml")) == 0
        top1 = {keep: valid_top1(label, keep, mode) for keep in tried.index if tried["status"][keep] == "done"}
        assert {keep: tried["valid_top1"][keep] for keep in top1} == top1
        assert {keep: tried["within"][keep] for keep in top1} == {keep: value >= least for keep, value in top1.items()}
        same_cell(label, min(keep for keep in top1 if top1[keep] >= least), mode)


def valid_top1(label: str, keep: float, mode: str) -> float:
    """That of an ordinary cell at its end, or in mode lc at the best step."""
    rows = history(label, f"{label}-n0-r0-{keep:.6g}")
    return float(rows["valid_top1"][rows["valid_loss"].idxmin() if mode == "lc" else len(rows) - 1])


def same_cell(label: str, keep: float, mode: str) -> None:
    """Whether the searched cell is the ordinary one of this keep ratio, to the last digit and weight."""
    found, grid = table().set_index("label").loc[label], table(label).set_index("keep_target", drop=False).loc[keep]
    assert math.isnan(found["keep_target"])
    compared = [column for column in found.index if column not in ("cell", "keep_target", "label")]
    pd.testing.assert_series_equal(found[compared], grid[compared], check_names=False)
    for file in ("history.csv", "layers.csv", *(["ranks.csv"] if mode != "lc" else [])):
        searched, ordinary = cell_file("small", label, file), cell_file(label, f"{label}-n0-r0-{keep:.6g}", file)
        pd.testing.assert_frame_equal(searched, ordinary)
    state = load_network("data/results/small", label=label).state_dict()
    expected = load_network(f"data/results/{label}", label=label, keep=keep).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


def saved_by(small: dict[str, Any], mode: str) -> type:
    if mode != "lc":
        return Checkpoint
    as_lc(small)
    return LCCheckpoint


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("mode", "written"), [("retrain", 5), ("lc", 7)])
def test_interrupted_it_ends_with_the_same_results(
    write: Any, small: dict[str, Any], mode: str, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved_by(small, mode)
    path = write(small)
    saves: list[str] = []
    save = checkpoint.save

    def count(self: Any, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        saves.append("")
        if len(saves) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", count)
    stop = 0
    assert run(path, "--results", "whole") == 0
    whole = len(saves) - (2 if mode == "retrain" else 0)  # of the reference network
    saves.clear()
    stop = written
    assert run(path) == 130
    stop = 0
    assert run(path) == 0
    assert len(saves) == whole, "no epoch was run twice"
    pd.testing.assert_frame_equal(table(), table(results="whole"))
    for label in ("WT", "FT"):
        there, expected = (samples(label, place).drop(columns="seconds") for place in ("data/results", "whole"))
        pd.testing.assert_frame_equal(there, expected)
    assert not list(Path().glob("data/results/small/cells/.partial-*"))


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("damaged", ["samples.json", "checkpoint.pt", None])
def test_what_is_lost_is_made_again(
    write: Any, small: dict[str, Any], damaged: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["experiments"]["methods"] = ["WT"]
    path = write(small)
    assert run(path, "--results", "whole") == 0
    add = searching._Log.add

    def interrupt(self: Any, tried: Any) -> None:
        if damaged is not None:
            add(self, tried)
        if len(self.found) == (0 if damaged is None else 3):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(searching._Log, "add", interrupt)
        assert run(path) == 130
    assert list(Path().glob("data/results/small/cells/.partial-*/**/checkpoint.pt"))
    for place in Path().glob(f"data/results/small/cells/.partial-*/**/{damaged}"):
        place.write_bytes(place.read_bytes()[:-20])
    assert run(path) == 0
    pd.testing.assert_frame_equal(table(), table(results="whole"))
    pd.testing.assert_frame_equal(samples("WT").drop(columns="seconds"), samples("WT", "whole").drop(columns="seconds"))


@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_workers_give_the_same(write: Any, small: dict[str, Any]) -> None:
    path = write(small)
    assert run(path, "--results", "whole") == 0
    assert main([str(path), "-j", "2", "-q"]) == 0
    pd.testing.assert_frame_equal(table(), table(results="whole"))


def test_a_run_with_report_beside_a_method_of_its_own_size(write: Any, small: dict[str, Any], capsys: Any) -> None:
    prune = {"name": "Prune", "settings": {"density": 0.2}}
    small["experiments"] |= {"methods": ["WT", prune]}
    path = write(small)
    assert main([str(path), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "2 retraining a network" in said
    assert "loses at most 3 points of validation top-1, 4 networks a cell at most, from keep 0.01 on" in said
    assert "2 epochs of training, at most 10 of retraining" in said
    assert main([str(path), "--plan=json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["keep_target"], r["epochs_retrain"]) for r in rows[1:]] == [(None, 8), (None, 2)]
    assert run(path) == 0
    frame = table()
    assert list(frame["status"]) == ["done"] * 3
    assert list(frame["keep_target"].isna()) == [False, True, True]
    found = samples("WT")
    assert frame.loc[1, "parameters"] == found[found["within"]]["parameters"].min()
    report = Path("data/results/small/report.md").read_text()
    assert "smallest of at most 4 networks that loses at most 3 points of validation top-1" in report
    (result,) = Path("data/results/small/cells").glob("WT-*/result.json")
    content = json.loads(result.read_text())
    assert content["keep_found"] == found[found["within"]]["keep"].min()
    assert content["seconds_retrain"] == pytest.approx(found["seconds"].sum(), abs=1e-3)


@pytest.mark.usefixtures("no_plots")
def test_nothing_within_the_loss_is_infeasible(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"methods": ["WT"], "search": {"accuracyLoss": 0, "samples": 2, "smallest": 0.001}}
    small["retraining"]["numEpochs"] = 0
    assert run(write(small)) == 0
    row = table().iloc[1]
    assert row["status"] == "infeasible"
    tried = samples("WT")
    assert not tried["within"].any()
    assert list(tried["status"]) == ["infeasible", "done"]  # 266 parameters are fewer than the biases
    whole = history("small", "Reference")["valid_top1"].iloc[-1]
    best = tried["valid_top1"].idxmax()
    lost = f"the least loss was {100 * (whole - tried['valid_top1'][best]):.3g} points, at keep ratio"
    assert f"{lost} {tried['keep'][best]:.4g}." in row["error"]
    small["experiments"]["search"]["samples"] = 1
    assert run(write(small)) == 0
    assert "none of 1 networks can be so small. The last: budget of 266 parameters cannot be met" in table()["error"][1]


@pytest.mark.usefixtures("no_plots")
def test_a_search_in_which_everything_diverges_fails(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"methods": ["WT"], "search": {"samples": 2}}
    small["retraining"] |= {"optimizerKwargs": {"lr": 1e9}}
    assert run(write(small)) == 1
    assert "every sample of the search that could be made diverged" in table()["error"][1]


class Fake:
    """Samples whose networks have the accuracy that a function gives for a keep ratio."""

    def __init__(self, cell: Cell, accuracy: Callable[[float], float], store: Store) -> None:
        self.cell, self.accuracy, self.store = cell, accuracy, store
        self.made: list[float] = []
        self.units = 0.0

    def make(self, cell: Cell, report: Any) -> Any:
        self.made.append(cell.keep)
        top1 = self.accuracy(cell.keep)
        report(Advanced(cell.epochs_retrain / 2))
        network = nn.Linear(1, 1).double()
        network.bias.data.fill_(top1)
        count = SimpleNamespace(parameters=round(1000 * cell.keep))
        return SimpleNamespace(compressed=SimpleNamespace(network=network, count=count), facts={"epochs": 3})

    def search(self, **settings: Any) -> Found:
        reference = nn.Linear(1, 1).double()
        reference.bias.data.fill_(0.9)
        return search(
            self.cell, Search.model_validate(settings), self.make, lambda network: float(network.bias.detach()),
            reference, self.store, self.report,
        )  # fmt: skip

    def report(self, event: Any) -> None:
        self.units += event.units


@pytest.fixture
def fake(write: Any, small: dict[str, Any], in_tmp: Path) -> Callable[[Callable[[float], float]], Fake]:
    cell = plan_experiment(load(write(small)), Machine("cpu")).cells[1]
    cell = replace(cell, samples=10, epochs_retrain=60)
    return lambda accuracy: Fake(cell, accuracy, Store(in_tmp / "store"))


@pytest.mark.parametrize("edge", [0.0004, 0.003, 0.02, 0.3, 0.95])
def test_of_a_monotone_accuracy_the_edge_is_found(fake: Any, edge: float) -> None:
    faked = fake(lambda keep: 0.9 if keep >= edge else 0.8)
    found = faked.search()
    assert found.best is not None
    assert max(edge, 0.001) <= found.best.keep <= max(edge * 1.02, 0.001)
    assert found.best.keep == min(t.keep for t in found.samples if t.within)
    assert [t.keep for t in found.samples] == faked.made
    assert all(t.within == (t.keep >= edge) for t in found.samples)
    assert found.best.epochs_retrain == 6
    assert faked.units == pytest.approx(60)


def test_what_diverges_or_cannot_be_made_is_not_within(fake: Any) -> None:
    def accuracy(keep: float) -> float:
        if keep < 0.01:
            raise InfeasibleBudget(limit=1, smallest=2, original=10, quantity="parameters")
        if keep < 0.1:
            raise TrainingDiverged("the loss became NaN")
        return 0.9

    faked = fake(accuracy)
    found = faked.search()
    assert found.best is not None
    assert 0.1 <= found.best.keep <= 0.102
    assert {t.status for t in found.samples} == {"infeasible", "diverged", "done"}
    assert faked.units == pytest.approx(60)
    again = fake(accuracy)
    assert again.search() == found
    assert again.made == []
    assert again.units == pytest.approx(60)


def test_a_loss_that_is_just_allowed_is_allowed(fake: Any) -> None:
    faked = fake(lambda keep: 0.8)
    found = faked.search(accuracyLoss=0.1)
    assert found.best is not None
    assert found.best.keep == 0.001


def keys(path: Path) -> dict[str, str]:
    return {cell.label: cell.key for cell in plan_experiment(load(path), Machine("cpu")).cells}


def test_what_the_search_enters_and_what_not(write: Any, small: dict[str, Any]) -> None:
    prune = {"name": "Prune", "settings": {"density": 0.2}}
    small["experiments"]["methods"] = ["WT", prune]
    four = keys(write(small))
    small["experiments"]["search"] = {"samples": 10}
    ten = keys(write(small))
    small["experiments"]["search"] = {}
    assert keys(write(small)) == ten, "the default"
    small["experiments"] |= {"search": None, "spacing": [{"type": "manual", "values": [1.0]}]}
    grid = keys(write(small))
    assert four["Reference"] == ten["Reference"] == grid["Reference"]
    assert four["Prune"] == ten["Prune"] == grid["Prune"]
    assert len({four["WT"], ten["WT"], grid["WT"]}) == 3


def test_several_losses_in_one_file(write: Any, small: dict[str, Any]) -> None:
    small["customizations"] = [{"key": ["experiments", "search", "accuracyLoss"], "value": v} for v in (0.01, 0.05)]
    plan = plan_experiment(load(write(small)), Machine("cpu"))
    assert len({cell.key for cell in plan.cells if cell.label == "WT"}) == 2
    assert {cell.samples for cell in plan.cells if cell.label == "WT"} == {4}


MODE = "experiments.search: needs mode retrain, retrain-rewind or lc, where every network starts from the reference"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": "cascade"}, MODE),
        ({"mode": "cascade-rewind"}, MODE),
        ({"mode": "train"}, "experiments.search: has no effect in mode train"),
        ({"spacing": [GRID]}, "experiments.search: stands in the place of spacing"),
        ({"retrainIterations": 1}, "experiments.retrainIterations: has no effect beside search"),
        ({"search": {"loss": 1}}, "experiments.search.loss: unknown key."),
        ({"search": {"accuracyLoss": 1}}, "experiments.search.accuracyLoss: must be less than 1. Got 1"),
        ({"search": {"samples": 0}}, "experiments.search.samples: must be at least 1. Got 0."),
        ({"search": {"smallest": 0}}, "experiments.search.smallest: must be greater than 0. Got 0"),
        ({"methods": ["Reference"]}, "experiments.search: has no effect: there is no method whose size"),
        (
            {"methods": [{"name": "Prune", "settings": {"density": 0.1}}]},
            "experiments.search: has no effect: there is no method whose size",
        ),
        ({"methods": [{"name": "WT", "settings": {"wrong": 1}}]}, "experiments.methods[0].settings.wrong"),
        ({"search": None}, "experiments: spacing is required and missing"),
    ],
)
def test_what_is_wrong_is_told_once(write: Any, small: dict[str, Any], change: dict[str, Any], told: str) -> None:
    small["experiments"].update(change)
    with pytest.raises(ConfigError) as caught:
        plan_experiment(load(write(small)), Machine("cpu"))
    (problem,) = caught.value.problems
    assert told in problem
