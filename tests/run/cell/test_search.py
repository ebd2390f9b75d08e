"""Searched keep ratios: the smallest network within a loss of validation accuracy, against ordinary cells."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from experiment import load_network
from experiment.config import Search, load
from experiment.errors import ConfigError, InfeasibleBudget, TrainingDiverged
from experiment.main import main
from experiment.report.plots import gallery
from experiment.run.cell.events import Advanced
from experiment.run.cell.search import CellSearch, SearchResult
from experiment.run.grid.cells import Cell
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.tasks.classification import TASK
from experiment.training.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

TIMES = ["seconds_compress", "seconds_retrain", "pareto"]
GRID = {"type": "manual", "values": [0.5, 0.1]}


def searching(small: dict[str, Any], mode: str = "retrain") -> dict[str, Any]:
    """The small experiment with a search instead of its grid."""
    small = copy.deepcopy(small)
    del small["experiments"]["spacing"]
    block = {"accuracyLoss": 0.2 if mode == "lc" else 0.03, "samples": 4, "smallest": 0.01}
    small["experiments"] |= {"methods": ["WT", "FT"] if mode == "retrain" else ["WT"], "mode": mode, "search": block}
    small["retraining"] = {"numEpochs": 2, "startEpoch": 0}
    if mode == "lc":
        small["lc"] = {"steps": 3, "iterations": 10, "iterationsFirst": 20, "muInit": 0.02}
    return small


@pytest.fixture
def small(small: dict[str, Any]) -> dict[str, Any]:
    return searching(small)


@pytest.fixture(scope="module")
def whole(small_parameters: dict[str, Any], run_once: Any) -> Callable[[str], Path]:
    """The folder of an uninterrupted search in one process, by mode."""

    @lru_cache
    def searched(mode: str) -> Path:
        parameters = searching(small_parameters, mode)
        parameters["experiments"]["measure"] = ["rank"]
        return run_once(parameters)  # type: ignore[no-any-return]

    return searched


def run(path: Path, *more: str) -> int:
    return main([str(path), "-j", "1", "-q", *more])


def table(name: str = "small", folder: Path = Path()) -> pd.DataFrame:
    return pd.read_csv(folder / f"data/results/{name}/results.csv").drop(columns=TIMES)


def cell_file(cell: str, file: str, name: str = "small", folder: Path = Path()) -> pd.DataFrame:
    (path,) = (folder / f"data/results/{name}/cells").glob(f"{cell}-*/{file}")
    return pd.read_csv(path).drop(columns="seconds", errors="ignore")


def samples(label: str, folder: Path = Path()) -> pd.DataFrame:
    return cell_file(label, "search.csv", folder=folder)


def assert_same_search(folder: Path) -> None:
    """The search in this folder has the same results as that in the working directory."""
    expected = table(folder=folder)
    found = table()
    pd.testing.assert_frame_equal(found, expected[expected["cell"].isin(found["cell"])])
    for label in set(found["method"]) - {"Reference"}:
        pd.testing.assert_frame_equal(samples(label), samples(label, folder))


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("mode", ["retrain", "retrain-rewind", "lc"])
def test_it_is_the_smallest_ordinary_cell_within_the_loss(
    small_parameters: dict[str, Any], mode: str, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole(mode))
    parameters = searching(small_parameters, mode)
    loss = parameters["experiments"].pop("search")["accuracyLoss"]
    tried = {label: samples(label).set_index("keep") for label in parameters["experiments"]["methods"]}
    keeps = sorted({keep for found in tried.values() for keep in found.index}, reverse=True)
    parameters["experiments"] |= {"spacing": [{"type": "manual", "values": keeps}], "measure": ["rank"]}
    path = Path("param/grid.yaml")
    path.write_text(yaml.safe_dump(parameters))
    assert run(path) == 0
    least = cell_file("Reference", "history.csv")["valid_top1"].iloc[-1] - loss - 1e-9
    for label, found in tried.items():
        top1 = {keep: valid_top1(label, keep, mode) for keep in found.index if found["status"][keep] == "done"}
        assert {keep: found["valid_top1"][keep] for keep in top1} == top1
        assert {keep: found["within"][keep] for keep in top1} == {keep: value >= least for keep, value in top1.items()}
        assert_same_cell(label, min(keep for keep in top1 if top1[keep] >= least), mode)


def valid_top1(label: str, keep: float, mode: str) -> float:
    """That of an ordinary cell at its end, or in mode lc at the best step."""
    rows = cell_file(f"{label}-n0-r0-{keep:.6g}", "history.csv", "grid")
    return float(rows["valid_top1"][rows["valid_loss"].idxmin() if mode == "lc" else len(rows) - 1])


def assert_same_cell(label: str, keep: float, mode: str) -> None:
    """The searched cell is the ordinary one of this keep ratio, to the last digit and weight."""
    grid = table("grid").set_index(["label", "keep_target"], drop=False).loc[(label, keep)]
    found = table().set_index("label").loc[label]
    assert math.isnan(found["keep_target"])
    compared = [column for column in found.index if column not in ("cell", "keep_target", "label")]
    pd.testing.assert_series_equal(found[compared], grid[compared], check_names=False)
    for file in ("history.csv", "layers.csv", *(["ranks.csv"] if mode != "lc" else [])):
        ordinary = cell_file(f"{label}-n0-r0-{keep:.6g}", file, "grid")
        pd.testing.assert_frame_equal(cell_file(label, file), ordinary)
    state = load_network("data/results/small", label=label).state_dict()
    expected = load_network("data/results/grid", label=label, keep=keep).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("mode", ["retrain", "lc"])
def test_interrupted_it_ends_with_the_same_results(
    write: Any, small_parameters: dict[str, Any], mode: str, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second sample."""
    parameters = searching(small_parameters, mode)
    parameters["experiments"]["methods"] = ["WT"]
    path = write(parameters)
    saves: list[str] = []
    save = Checkpoint.save

    def interrupt(self: Any, state: Any, **more: Any) -> None:
        save(self, state, **more)
        saves.append("")
        if len(saves) == 2 + (4 if mode == "lc" else 3):  # two epochs of the reference network
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupt)
    assert run(path) == 130
    assert run(path) == 0
    assert_same_search(whole(mode))
    made = samples("WT").query("status == 'done'")
    assert len(saves) == 2 + (3 * len(made) if mode == "lc" else made["epochs"].sum()), "no epoch is run twice"
    assert not list(Path().glob("data/results/small/cells/.partial-*"))


@pytest.mark.usefixtures("no_plots")
def test_what_is_lost_is_made_again(
    write: Any, small: dict[str, Any], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a sample, before it is written and by damage; and the checkpoint of one that is recorded."""
    small["experiments"]["methods"] = ["WT"]
    path = write(small)
    record = CellSearch._record
    for damaged, recorded in ((None, 0), ("samples.json", 2), ("checkpoint.pt", 3)):

        def interrupt(self: Any, sample: Any, written: bool = damaged is not None, most: int = recorded) -> None:
            if written:
                record(self, sample)
            if len(self._recorded) == most:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(CellSearch, "_record", interrupt)
            assert run(path) == 130
        found = list(Path().glob(f"data/results/small/cells/.partial-*/**/{damaged or 'checkpoint.pt'}"))
        assert found
        for place in found if damaged else ():
            place.write_bytes(place.read_bytes()[:-20])
    assert run(path) == 0
    assert_same_search(whole("retrain"))


@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_workers_give_the_same(write: Any, small: dict[str, Any], whole: Any) -> None:
    assert main([str(write(small)), "-j", "2", "-q"]) == 0
    assert_same_search(whole("retrain"))


def test_a_run_with_report_beside_a_method_of_its_own_size(
    write: Any, small: dict[str, Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "GALLERY", ())  # trade-offs take long
    prune = {"name": "Prune", "settings": {"density": 0.2}}
    small["experiments"] |= {"methods": ["WT", prune]}
    path = write(small)
    assert main([str(path), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "2 retraining per network" in said
    assert "loses at most 3 points of validation top-1, at most 4 networks per cell, smallest keep 0.01" in said
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
    assert "within a loss of validation accuracy (accuracyLoss=0.03, samples=4, " in report
    (result,) = Path("data/results/small/cells").glob("WT-*/result.json")
    content = json.loads(result.read_text())
    assert content["keep_found"] == found[found["within"]]["keep"].min()
    seconds = pd.read_csv(result.with_name("search.csv"))["seconds"]
    assert content["seconds_retrain"] == pytest.approx(seconds.sum(), abs=1e-3)


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
    whole = cell_file("Reference", "history.csv")["valid_top1"].iloc[-1]
    best = tried["valid_top1"].idxmax()
    lost = f"The smallest loss is {100 * (whole - tried['valid_top1'][best]):.3g} points, at keep ratio"
    assert f"{lost} {tried['keep'][best]:.4g}." in row["error"]
    small["experiments"]["search"]["samples"] = 1
    assert run(write(small)) == 0
    assert "none of 1 keep ratios is feasible. The last: budget of 266 parameters cannot be met" in table()["error"][1]


@pytest.mark.usefixtures("no_plots")
def test_a_search_in_which_everything_diverges_fails(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"methods": ["WT"], "search": {"samples": 2}}
    small["retraining"] |= {"optimizerKwargs": {"lr": 1e9}}
    assert run(write(small)) == 1
    assert "all feasible samples of the search diverged" in table()["error"][1]


class Fake:
    """A search whose networks have the accuracy that a function gives for a keep ratio."""

    def __init__(self, cell: Cell, accuracy: Callable[[float], float], folder: Path) -> None:
        self.cell, self.accuracy, self.folder = cell, accuracy, folder
        self.made: list[Cell] = []
        self.units = 0.0

    def make(self, cell: Cell, folder: Path, report: Any) -> Any:
        self.made.append(cell)
        top1 = self.accuracy(cell.keep)
        report(Advanced(cell.epochs_retrain / 2))
        network = nn.Linear(1, 1).double()
        network.bias.data.fill_(top1)
        count = SimpleNamespace(parameters=round(1000 * cell.keep))
        compressed = SimpleNamespace(network=network, count=count)
        return SimpleNamespace(compressed=compressed, facts={"epochs": 3})

    def search(self, **settings: Any) -> SearchResult:
        return CellSearch(
            self.cell, Search.model_validate(settings), self.folder, make=self.make,
            measure=lambda network: float(network.bias.detach()), metric=TASK.primary, reference=0.9,
        ).run(self.report)  # fmt: skip

    def report(self, event: Any) -> None:
        self.units += event.units


@pytest.fixture
def fake(write: Any, small: dict[str, Any], in_tmp: Path) -> Callable[[Callable[[float], float]], Fake]:
    cell = plan_experiment(load(write(small)), Machine("cpu")).cells[1]
    cell = replace(cell, samples=10, epochs_retrain=60)
    return lambda accuracy: Fake(cell, accuracy, in_tmp / "partial")


@pytest.mark.parametrize("edge", [0.0004, 0.003, 0.95])
def test_of_a_monotone_accuracy_the_edge_is_found(fake: Any, edge: float) -> None:
    faked = fake(lambda keep: 0.9 if keep >= edge else 0.8)
    found = faked.search()
    assert found.keep is not None
    assert max(edge, 0.001) <= found.keep <= max(edge * 1.02, 0.001)
    assert found.keep == min(t.keep for t in found.samples if t.within)
    assert [t.keep for t in found.samples] == [cell.keep for cell in faked.made]
    assert all(t.within == (t.keep >= edge) for t in found.samples)
    assert {cell.epochs_retrain for cell in faked.made} == {6}
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
    assert found.keep is not None
    assert 0.1 <= found.keep <= 0.102
    assert {t.status for t in found.samples} == {"infeasible", "diverged", "done"}
    assert faked.units == pytest.approx(60)
    again = fake(accuracy)
    assert again.search() == found
    assert again.made == []
    assert again.units == pytest.approx(60)


def test_a_loss_that_is_just_allowed_is_allowed(fake: Any) -> None:
    faked = fake(lambda keep: 0.8)
    found = faked.search(accuracyLoss=0.1)
    assert found.keep == 0.001


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


MODE = "experiments.search: needs mode retrain, retrain-rewind, gradual or lc, where networks start from the reference"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": "cascade"}, MODE),
        ({"mode": "cascade-rewind"}, MODE),
        ({"mode": "train"}, "experiments.search: has no effect in mode train"),
        ({"spacing": [GRID]}, "experiments.search: cannot be combined with spacing"),
        ({"retrainIterations": 1}, "experiments.retrainIterations: has no effect with search"),
        ({"search": {"loss": 1}}, "experiments.search.loss: unknown key."),
        ({"search": {"accuracyLoss": 1}}, "experiments.search.accuracyLoss: must be less than 1. Got 1"),
        ({"search": {"samples": 0}}, "experiments.search.samples: must be at least 1. Got 0."),
        ({"search": {"smallest": 0}}, "experiments.search.smallest: must be greater than 0. Got 0"),
        ({"methods": ["Reference"]}, "experiments.search: has no effect: no method has a size"),
        (
            {"methods": [{"name": "Prune", "settings": {"density": 0.1}}]},
            "experiments.search: has no effect: no method has a size",
        ),
        ({"methods": [{"name": "WT", "settings": {"wrong": 1}}]}, "experiments.methods[0].settings.wrong"),
        ({"search": None}, "experiments.spacing: is required and missing"),
    ],
)
def test_what_is_wrong_is_told_once(write: Any, small: dict[str, Any], change: dict[str, Any], told: str) -> None:
    small["experiments"].update(change)
    with pytest.raises(ConfigError) as caught:
        plan_experiment(load(write(small)), Machine("cpu"))
    (problem,) = caught.value.problems
    assert told in problem
