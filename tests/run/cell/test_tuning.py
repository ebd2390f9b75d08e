"""Tuned retraining: the trials against experiments of their own, and what is chosen from them."""

import copy
import json
import os
import signal
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
from experiment.config import load
from experiment.config.tuning import Trial, trials
from experiment.errors import TrainingDiverged
from experiment.main import main
from experiment.methods.base import Compressor
from experiment.run.cell.events import Advanced
from experiment.run.cell.outcome import CellNetwork
from experiment.run.cell.tuning import Tuning
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.tasks.classification import TASK
from experiment.tasks.regression import TASK as REGRESSION
from experiment.training.checkpoint import Checkpoint
from experiment.training.evaluation import Metrics

LR = "optimizerKwargs.lr"
RATES = [0.001, 0.05, 1e20]  # the last one diverges
TIMES = ["seconds_compress", "seconds_retrain", "seconds_tune"]
MODES = {
    "retrain": {},
    "cascade": {"mode": "cascade"},
    "retrain-rewind": {"mode": "retrain-rewind"},
    "random": {"rewind": "random"},
    "gradual": {"mode": "gradual"},
}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_plots")]


def tuning(small: dict[str, Any], mode: str = "retrain", rates: Any = RATES) -> dict[str, Any]:
    """The small experiment with two epochs of retraining, the rate of which is tuned."""
    small = copy.deepcopy(small)
    small["experiments"] |= {"methods": ["WT", "FT"], "measure": ["rank"], **MODES[mode]}
    small["experiments"]["spacing"][0]["values"] = [0.3, 0.1] if mode == "cascade" else [0.1]
    small["retraining"] = {"numEpochs": 2, "tune": {LR: rates}}
    return small


@pytest.fixture(scope="module")
def whole(small_parameters: dict[str, Any], run_once: Any) -> Callable[[str], Path]:
    """The folder of an uninterrupted run in one process, by mode."""
    return lru_cache(lambda mode: run_once(tuning(small_parameters, mode)))


def run(path: Path, *more: str) -> int:
    return main([str(path), "-j", "1", "-q", *more])


def table(name: str = "small", folder: Path = Path()) -> pd.DataFrame:
    return pd.read_csv(folder / f"data/results/{name}/results.csv").drop(columns=[*TIMES, "pareto"], errors="ignore")


def cell_file(file: str, key: str, name: str = "small", folder: Path = Path()) -> pd.DataFrame:
    (path,) = (folder / f"data/results/{name}/cells").glob(f"*-{key}/{file}")
    return pd.read_csv(path).drop(columns="seconds", errors="ignore")


def keys(path: Path) -> list[str]:
    return [cell.key for cell in plan_experiment(load(path), Machine("cpu")).cells]


@pytest.mark.parametrize("mode", MODES)
def test_trials_are_the_cells_of_each_rate_and_the_best_is_kept(
    small_parameters: dict[str, Any], whole: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole(mode))
    single = tuning(small_parameters, mode)
    del single["retraining"]["tune"]
    single["customizations"] = [{"key": ["retraining", *LR.split(".")], "value": rate} for rate in RATES[:2]]
    path = Path("param/single.yaml")
    path.write_text(yaml.safe_dump(single))
    assert run(path) == 0
    alone = table("single").set_index(["variant", "label", "keep_target"], drop=False)
    previous: dict[str, float] = {}  # the rate that the cell before in a cascade was retrained with
    for _, row in table().query("method != 'Reference'").iterrows():
        tried = cell_file("trials.csv", row["cell"])
        assert list(tried[LR]) == RATES
        (best,) = tried.index[tried["chosen"]]
        assert best == tried["valid_top1"].idxmax()
        assert row["tuned"] == f"{LR}={tried[LR][best]}"
        assert "training diverged" in tried["error"][2]
        for i, rate in enumerate(RATES[:2]):
            cell = alone.loc[(f"retraining.{LR}={rate}", row["label"], row["keep_target"])]
            if previous.get(row["label"], rate) != rate:  # it starts from another network
                continue
            history = cell_file("history.csv", cell["cell"], "single")
            assert tried["valid_top1"][i] == history["valid_top1"].iloc[-1]
            assert tried["valid_loss"][i] == pytest.approx(history["valid_loss"].iloc[-1], rel=1e-6)
            if i == best:
                assert_same_cell(row, cell)
        previous |= {row["label"]: tried[LR][best]} if mode == "cascade" else {}


def assert_same_cell(tuned: pd.Series, alone: pd.Series) -> None:
    """Both have the same figures, files and weights, to the last digit."""
    compared = [column for column in alone.index if column not in ("cell", "variant")]
    pd.testing.assert_series_equal(tuned[compared], alone[compared], check_names=False)
    for file in ("history.csv", "layers.csv", "ranks.csv"):
        pd.testing.assert_frame_equal(cell_file(file, tuned["cell"]), cell_file(file, alone["cell"], "single"))
    which = {"label": tuned["label"], "keep": tuned["keep_target"]}
    state = load_network("data/results/small", **which).state_dict()
    expected = load_network("data/results/single", variant=alone["variant"], **which).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("mode", ["retrain", "gradual"])
def test_killed_in_the_second_trial_it_ends_with_the_same_results(
    write: Any,
    small_parameters: dict[str, Any],
    mode: str,
    whole: Any,
    forked: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = write(tuning(small_parameters, mode))
    log, save = tmp_path / "saves", Checkpoint.save

    def counted(self: Any, state: Any, **more: Any) -> None:
        save(self, state, **more)
        with log.open("a") as stream:
            stream.write("x")
        if len(log.read_text()) == 2 + per_trial + 1:  # two epochs of the reference network
            os.kill(os.getpid(), signal.SIGKILL)

    per_trial = 2 if mode == "retrain" else 3  # with the steps of mode gradual
    monkeypatch.setattr(Checkpoint, "save", counted)
    assert forked(lambda: run(path)).wait() == -signal.SIGKILL
    (record,) = Path().glob("data/results/small/cells/.partial-*/trials.json")
    assert len(json.loads(record.read_text())) == 1
    assert run(path) == 0
    assert len(log.read_text()) == 2 + 2 * 2 * per_trial, "no epoch of two cells with two trials is run twice"
    pd.testing.assert_frame_equal(table(), table(folder=whole(mode)))
    for key in table().query("method != 'Reference'")["cell"]:
        pd.testing.assert_frame_equal(cell_file("trials.csv", key), cell_file("trials.csv", key, folder=whole(mode)))
    assert not list(Path().glob("data/results/small/cells/.partial-*"))


def test_a_damaged_record_or_a_lost_checkpoint_is_made_again(
    write: Any, small_parameters: dict[str, Any], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tried = write(tuning(small_parameters)), Tuning._tried
    for damaged in ("trials.json", "checkpoint.pt"):

        def interrupt(self: Tuning, trial: int, report: Any) -> Any:
            if trial == 2:
                raise KeyboardInterrupt
            return tried(self, trial, report)

        with monkeypatch.context() as patch:
            patch.setattr(Tuning, "_tried", interrupt)
            assert run(path) == 130
        (place,) = Path().glob(f"data/results/small/cells/.partial-*/**/{damaged}")  # of the best trial alone
        place.write_bytes(place.read_bytes()[:-20])
    assert run(path) == 0
    pd.testing.assert_frame_equal(table(), table(folder=whole("retrain")))


@pytest.mark.usefixtures("quick_workers")
def test_workers_give_the_same(write: Any, small_parameters: dict[str, Any], whole: Any) -> None:
    assert main([str(write(tuning(small_parameters))), "-j", "2", "-q"]) == 0
    pd.testing.assert_frame_equal(table(), table(folder=whole("retrain")))


def test_all_trials_share_one_compression_and_every_method_has_as_many(
    write: Any, small_parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    parameters = tuning(small_parameters, rates=[0.05, 0.01])
    parameters["retraining"]["tune"]["batchSize"] = [32, 64]
    parameters["experiments"] |= {"methods": ["WT", "FT", "SVD", "PFP"], "measure": []}
    made: list[Any] = []
    compress = Compressor.compress
    monkeypatch.setattr(Compressor, "compress", lambda self, *args: made.append(args) or compress(self, *args))
    path = write(parameters)
    assert main([str(path), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "2 training, 2 retraining per trial" in said
    assert "batchSize in [32, 64], optimizerKwargs.lr in [0.05, 0.01]: 4 trials per cell" in said
    assert "2 epochs of training, 32 of retraining" in said
    assert run(path) == 0
    assert len(made) == 4
    frame = pd.read_csv("data/results/small/results.csv")
    assert list(frame["tuned"].isna()) == [True, *[False] * 4], "the reference network is not tuned"
    assert set(frame["epochs"][1:]) == {2}
    for _, row in frame[1:].iterrows():
        (path,) = Path().glob(f"data/results/small/cells/*-{row['cell']}/trials.csv")
        tried = pd.read_csv(path)
        assert tried[["batchSize", LR]].to_numpy().tolist() == [[32, 0.05], [32, 0.01], [64, 0.05], [64, 0.01]]
        assert tried["seconds"].sum() == pytest.approx(row[TIMES].sum(), abs=1e-2)
        assert 0 < row["seconds_tune"] < tried["seconds"].sum()


def test_what_loses_nothing_is_not_tuned(write: Any, small: dict[str, Any]) -> None:
    parameters = tuning(small)
    parameters["experiments"] |= {"methods": ["WT"], "measure": []}
    parameters["experiments"]["spacing"][0]["values"] = [1.0]
    assert run(write(parameters)) == 0
    row = table().iloc[1]
    assert (row["status"], row["epochs"], row["top1"]) == ("done", 0, row["top1_reference"])
    assert pd.isna(row["tuned"])
    assert not list(Path().glob("data/results/small/cells/WT*/trials.csv"))


def test_cells_in_which_all_trials_diverge_fail(write: Any, small: dict[str, Any]) -> None:
    parameters = tuning(small, rates=[1e19, 1e20])
    parameters["experiments"]["methods"] = ["WT"]
    assert run(write(parameters)) == 1
    row = table().iloc[1]
    assert row["error"].startswith("all 2 trials diverged. The last: training diverged in epoch 0")
    tried = cell_file("trials.csv", row["cell"])
    assert tried[LR].tolist() == [1e19, 1e20]
    assert list(tried["chosen"]) == [False, False]
    assert tried["error"].str.startswith("training diverged in epoch 0").all()


def test_the_networks_of_a_search_are_tuned(write: Any, small: dict[str, Any]) -> None:
    parameters = tuning(small, rates=[0.001, 0.05])
    del parameters["experiments"]["spacing"]
    parameters["experiments"] |= {"methods": ["WT"], "search": {"accuracyLoss": 0.05, "samples": 3, "smallest": 0.02}}
    path = write(parameters)
    (_, cell) = plan_experiment(load(path), Machine("cpu")).cells
    assert cell.epochs_retrain == 3 * 2 * 2
    assert run(path) == 0
    row = pd.read_csv("data/results/small/results.csv").iloc[1]
    samples = pd.read_csv(next(Path().glob("data/results/small/cells/WT*/search.csv")))
    tried = cell_file("trials.csv", row["cell"])
    found = samples[samples["within"]].sort_values("keep").iloc[0]
    assert tried["valid_top1"].max() == found["valid_top1"]
    assert row["tuned"] == f"{LR}={tried[LR][tried['valid_top1'].idxmax()]}"
    assert row["seconds_retrain"] + row["seconds_tune"] == pytest.approx(samples["seconds"].sum(), abs=1e-2)


def test_other_test_data_do_not_take_the_network_for_a_trial(write: Any, small: dict[str, Any]) -> None:
    parameters = tuning(small, rates=[0.001, 0.05])
    parameters["experiments"] |= {"methods": ["WT"], "measure": []}
    assert run(write(parameters)) == 0
    before = table().iloc[1]
    parameters["experiments"]["datasetTest"] = [{"name": "Digits", "corruption": "fog", "severity": 1}]
    assert run(write(parameters)) == 0
    after = table().iloc[1]
    assert after["cell"] != before["cell"]
    pd.testing.assert_frame_equal(cell_file("trials.csv", after["cell"]), cell_file("trials.csv", before["cell"]))


def test_only_what_is_tuned_has_other_keys_and_columns(write: Any, small: dict[str, Any]) -> None:
    plain = keys(write(small))
    small["retraining"]["tune"] = None
    assert keys(write(small)) == plain
    small["retraining"]["tune"] = {LR: [0.1, 0.01], "batchSize": [32, 64]}
    tuned = keys(write(small))
    assert tuned[0] == plain[0], "the reference network"
    assert not set(tuned[1:]) & set(plain[1:])
    small["retraining"]["tune"] = {"batchSize": [32, 64], "optimizerKwargs": {"lr": [0.1, 0.01]}}
    assert keys(write(small)) == tuned, "the order of keys, and how they are written"
    small["retraining"]["tune"][LR] = [0.01, 0.1]
    assert set(keys(write(small))[1:]).isdisjoint(tuned), "of equal trials the first is chosen"
    del small["retraining"]["tune"]
    small["experiments"] |= {"methods": ["WT"], "spacing": [{"type": "manual", "values": [0.5]}]}
    assert run(write(small)) == 0
    assert not {"tuned", "seconds_tune"} & set(pd.read_csv("data/results/small/results.csv"))


class Fake:
    """A cell whose trials have the validation figures that a list gives; an error stands for itself."""

    def __init__(self, write: Any, small: dict[str, Any], folder: Path, figures: list[Any], task: Any = TASK) -> None:
        small = tuning(small, rates=[1 / (i + 1) for i in range(len(figures))])
        plan = plan_experiment(load(write(small)), Machine("cpu"))
        self.trials: list[Trial] = trials(plan.file.parameters)
        self.cell = replace(plan.cells[1], epochs_retrain=12)
        self.figures, self.task, self.folder = figures, task, folder
        self.made: list[tuple[int, int]] = []
        self.units = 0.0

    def make(self, cell: Any, block: Any, folder: Path, report: Any) -> CellNetwork:
        trial = round(1 / block.optimizer_kwargs["lr"]) - 1
        self.made.append((trial, cell.epochs_retrain))
        if isinstance(self.figures[trial], Exception):
            raise self.figures[trial]
        report(Advanced(cell.epochs_retrain / 2))
        network = nn.Linear(1, 1).double()
        network.bias.data.fill_(self.figures[trial])
        facts = {"epochs": 3, "seconds_compress": 1.0, "seconds_retrain": 0.0}
        compressed: Any = SimpleNamespace(network=network)
        return CellNetwork(compressed, network, ["an epoch"], None, facts)  # type: ignore[list-item]

    def run(self) -> CellNetwork:
        name = self.task.primary.name

        def measure(network: nn.Module) -> Metrics:
            return Metrics(0.0, {name: float(network.bias.detach())}, 1)  # type: ignore[operator]

        return Tuning(self.cell, self.trials, self.folder, self.make, measure, self.task.primary).run(self.report)

    def report(self, event: Any) -> None:
        self.units += event.units


@pytest.fixture
def fake(write: Any, small: dict[str, Any], in_tmp: Path) -> Callable[..., Fake]:
    return lambda figures, task=TASK: Fake(write, small, in_tmp / "partial", figures, task)


NAN, DIVERGED = float("nan"), TrainingDiverged("the loss became NaN")


@pytest.mark.parametrize(
    ("figures", "task", "best"),
    [
        ([0.5, 0.9, 0.7], TASK, 1),
        ([0.5, 0.9, 0.9], TASK, 1),
        ([0.9, 0.9], TASK, 0),
        ([0.5, 0.9, 0.4, 0.4], REGRESSION, 2),
        ([NAN, 0.5, DIVERGED], TASK, 1),
        ([DIVERGED, NAN, 0.1, 0.2], TASK, 3),
    ],
)
def test_the_first_of_the_best_is_chosen(fake: Any, figures: list[Any], task: Any, best: int) -> None:
    faked = fake(figures, task)
    found = faked.run()
    each = 12 // len(figures)
    assert faked.made == [*((i, each) for i in range(len(figures))), (best, each)]
    assert [row["chosen"] for row in found.trials] == [i == best for i in range(len(figures))]
    assert found.facts["tuned"] == faked.trials[best].name
    assert float(found.compressed.network.bias.detach()) == figures[best]
    assert faked.units == pytest.approx(12)
    again = fake(figures, task)
    assert again.run().trials == found.trials
    assert again.made == [(best, each)], "no trial is run twice"
    assert again.units == pytest.approx(12)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ([DIVERGED, DIVERGED], "all 2 trials diverged. The last: the loss became NaN"),
        ([DIVERGED, NAN], "all 2 trials diverged. The last: its validation gives nan"),
    ],
)
def test_without_any_figure_nothing_is_chosen(fake: Any, figures: list[Any], message: str) -> None:
    with pytest.raises(TrainingDiverged, match=message):
        fake(figures).run()
