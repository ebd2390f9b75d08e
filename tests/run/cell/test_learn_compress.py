"""Mode lc in the runner: keys, plans, results, interruptions, what the report draws of it, and what is refused."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_results import histories, keys, table

from experiment import load_network
from experiment.config import load
from experiment.errors import ConfigError
from experiment.main import main
from experiment.report import write_report
from experiment.report.plots import gallery
from experiment.run.disk.store import Directories
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.run.preflight import check_before_running
from experiment.training.checkpoint import Checkpoint

BLOCK = {"steps": 4, "iterations": 15, "iterationsFirst": 30, "muInit": 0.02, "muMultiplier": 1.5}


@pytest.fixture
def lc(small: dict[str, Any]) -> dict[str, Any]:
    small["experiments"]["mode"] = "lc"
    small["lc"] = BLOCK
    return small


@pytest.fixture(scope="module")
def whole(small_parameters: dict[str, Any], run_once: Any) -> Path:
    """The folder of an uninterrupted run in one process."""
    parameters = copy.deepcopy(small_parameters)
    parameters["experiments"]["mode"] = "lc"
    return run_once(parameters | {"lc": BLOCK})  # type: ignore[no-any-return]


def test_from_the_file_to_the_report(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    frame = pd.read_csv("data/results/small/results.csv")
    assert set(frame["status"]) == {"done"}
    cells = frame[frame["method"] != "Reference"]
    assert (cells["keep_parameters"] <= cells["keep_target"]).all()
    assert (cells["epochs"] == round(60 / 21, 4)).all()  # 1,293 images in batches of 64
    wt = cells[cells["method"] == "WT"]
    assert (wt["top1"] > wt["top1_before_retraining"]).any()
    for name, history in histories(whole).items():
        if not name.startswith("Reference"):
            assert list(history["iteration"]) == [0, 1, 2, 3]
            assert list(history["iterations"]) == [0, 30, 45, 60]
            assert list(history["mu"]) == pytest.approx([0.0, 0.02, 0.03, 0.045])
            assert (history["distance"] > 0).all()
    assert not list(whole.glob("data/**/.partial-*"))
    network = load_network("param/small.yaml", method="WT", keep=0.1)
    assert sum(int((p != 0).sum()) for p in network.parameters()) <= 0.1 * 266_610 + 410
    monkeypatch.setattr(gallery, "GALLERY", (gallery.convergence,))  # trade-offs take long
    report = write_report(Path("data/results/small"))
    assert Path("data/results/small/plots/convergence.png").is_file()
    assert "convergence.png" in report.markdown.read_text()


@pytest.mark.usefixtures("no_plots")
def test_interrupted_it_ends_with_the_same_results(
    write: Any, lc: dict[str, Any], in_tmp: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first step of a cell, in the middle of it, and at the start of the next one."""
    save, saved = Checkpoint.save, []

    def interrupt(self: Checkpoint, state: dict[str, Any], **more: Any) -> None:
        save(self, state, **more)
        if "theta" not in state:  # of the reference network
            return
        saved.append(state)
        if len(saved) in (1, 3, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupt)
    for status in (130, 130, 130, 0):
        assert main([str(write(lc)), "-j", "1", "-q"]) == status
    assert len(saved) == 4 * 4, "nothing is computed twice"
    pd.testing.assert_frame_equal(table(in_tmp), table(whole))
    expected = histories(whole)
    for name, history in histories(in_tmp).items():
        pd.testing.assert_frame_equal(history, expected[name])


@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_workers_give_the_same(write: Any, lc: dict[str, Any], in_tmp: Path, whole: Path) -> None:
    assert main([str(write(lc)), "-j", "2", "-q"]) == 0
    pd.testing.assert_frame_equal(table(in_tmp), table(whole))


def test_the_block_enters_keys_in_its_mode_alone(write: Any, small: dict[str, Any]) -> None:
    retrain = keys(write(small))
    small["lc"] = {"steps": 4}
    assert keys(write(small)) == retrain
    small["experiments"]["mode"] = "lc"
    four = keys(write(small))
    small["lc"] = {"steps": 30}
    thirty = keys(write(small))
    small["lc"] = {}
    assert keys(write(small)) == thirty  # the default
    assert four[0] == retrain[0]  # the reference
    assert len({*four, *thirty, *retrain}) == 1 + 3 * 4


def test_what_the_mode_does_not_use_is_in_no_key(write: Any, lc: dict[str, Any]) -> None:
    expected = keys(write(lc))
    lc["retraining"] = {"numEpochs": 9, "startEpoch": 1, "lrSchedulers": []}
    assert keys(write(lc)) == expected
    lc["retraining"]["optimizerKwargs"] = {"lr": 0.01}
    assert keys(write(lc))[1:] != expected[1:]


def test_the_plan_counts_epochs(write: Any, lc: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(lc)), "--plan=json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["epochs_retrain"] for row in rows if row["method"] != "Reference"} == {math.ceil(60 / 21)}
    assert {row["mode"] for row in rows} == {"lc"}
    lc["lc"] = {"steps": 12}
    assert {c.epochs_retrain for c in plan_experiment(load(write(lc)), Machine("cpu")).cells} == {0, 5 + 10}


@pytest.mark.usefixtures("no_plots")
def test_beside_retraining_in_one_file(write: Any, lc: dict[str, Any]) -> None:
    lc["customizations"] = [{"key": ["experiments", "mode"], "value": mode} for mode in ("retrain", "lc")]
    lc["experiments"]["spacing"] = [{"type": "manual", "values": [0.1]}]
    lc["retraining"]["numEpochs"] = 1
    lc["lc"] = {"steps": 2, "iterations": 5, "iterationsFirst": 5}
    assert main([str(write(lc)), "-j", "1", "-q"]) == 0
    frame = pd.read_csv("data/results/small/results.csv")
    assert list(frame["variant"].unique()) == ["experiments.mode=retrain", "experiments.mode=lc"]
    direct = frame.groupby("label")["top1_before_retraining"].nunique()
    assert list(direct) == [1, 1, 1], "direct compression is the same in both modes"


@pytest.mark.usefixtures("no_plots")
def test_what_removes_nothing_learns_nothing(write: Any, lc: dict[str, Any]) -> None:
    lc["experiments"] |= {"methods": ["WT", "Fake"], "spacing": [{"type": "manual", "values": [1.0, 0.001]}]}
    assert main([str(write(lc)), "-j", "1", "-q"]) == 0
    frame = pd.read_csv("data/results/small/results.csv").set_index(["method", "keep_target"])
    assert frame.loc[("WT", 1.0), "epochs"] == 0
    assert frame.loc[("Fake", 1.0), "epochs"] > 0
    assert frame.loc[("WT", 0.001), "status"] == "infeasible"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lc": {"step": 3}}, "lc.step: unknown key. Did you mean 'steps'?"),
        ({"lc": {"muInit": 0}}, "lc.muInit: must be greater than 0. Got 0"),
        ({"lc": {"lrEnd": 0.1, "lrDecay": 0.9}}, "lc.lrDecay: has no effect with lrEnd"),
        ({"lc": {"lrEnd": 0.1, "lrMilestones": [3]}}, "lc.lrMilestones: has no effect with lrEnd"),
        ({"lc": {"steps": 3, "lrMilestones": [2, 3]}}, "lc.lrMilestones: must be below steps (3)"),
        ({"lc": {"muInit": 2, "muCap": 1}}, "lc.muCap: must be at least muInit (2). Got 1."),
        ({"rewind": "weights"}, "experiments.rewind: has no effect in mode lc"),
        ({"retrainIterations": 1}, "experiments.retrainIterations: has no effect in mode lc"),
    ],
)
def test_what_is_wrong_is_told(write: Any, lc: dict[str, Any], change: dict[str, Any], told: str) -> None:
    (lc if "lc" in change else lc["experiments"]).update(change)
    with pytest.raises(ConfigError) as caught:
        load(write(lc))
    assert told in str(caught.value)


def test_several_processes_for_one_network_are_refused(write: Any, lc: dict[str, Any], in_tmp: Path) -> None:
    machine = Machine("cpu", processes=2)
    plan = plan_experiment(load(write(lc)), machine)
    places = Directories(in_tmp / "results", in_tmp / "trained", in_tmp / "datasets")
    (problem,) = check_before_running(plan, places, machine).problems
    assert "experiments.mode: lc trains every network in one process" in problem
