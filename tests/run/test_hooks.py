"""Hooks: what they are told and when, that their failures cost nothing, and MLflow with a local database."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiment.config import load
from experiment.hooks.hook import CellFacts, Epoch, Run
from experiment.main import EXIT_INTERRUPTED, main
from experiment.run.grid.hardware import Machine
from experiment.run.grid.plan import plan_experiment

pytestmark = pytest.mark.slow

RESULTS = Path("data/results/small")
PAGE = Path(__file__).parents[2] / "docs/hooks.md"


def with_hooks(small: dict[str, Any], *hooks: Any) -> dict[str, Any]:
    small["experiments"] |= {"methods": ["WT"], "hooks": list(hooks)}
    return small


def notes(method: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path("notes.jsonl").read_text().splitlines()]
    return [line for line in lines if method in ("", line["method"])]


RECORDER = {"name": "hooks_of_tests:Recorder", "settings": {"word": "well"}}


@pytest.mark.usefixtures("no_plots")
def test_a_hook_is_told_what_the_results_say(write: Any, small: dict[str, Any]) -> None:
    small["training"]["numEpochs"] = 3
    small["retraining"] = {"startEpoch": 1}
    assert main([str(write(with_hooks(small, RECORDER))), "-j", "1", "-q"]) == 0
    epochs = ["epoch_start", "epoch_end"]
    retrained = ["cell_start", *epochs * 2, "cell_end"]
    assert [n["method"] for n in notes()] == [
        "run_start", "cell_start", *epochs * 3, "cell_end", *retrained * 2, "run_end"
    ]  # fmt: skip
    assert {n["word"] for n in notes()} == {"well"}
    assert (notes("run_start")[0]["name"], notes("run_start")[0]["num_cells"]) == ("small", 3)
    assert notes("run_end")[0]["counts"] == {"done": 3}
    frame = pd.read_csv(RESULTS / "results.csv").set_index("cell")
    for note in notes("cell_end"):
        cell, result, row = note["cell"], note["result"], frame.loc[note["cell"]["key"]]
        assert (result["top1"], result["parameters"]) == (row["top1"], row["parameters"])
        assert math.isclose(result["keep_parameters"], row["keep_parameters"])
        assert (cell["label"], cell["net"], cell["dataset"], cell["seed"]) == (row["label"], row["net"], "Digits", 0)
        assert cell["keep"] is None if cell["method"] == "Reference" else cell["keep"] == row["keep_target"]
        history = pd.read_csv(Path(cell["folder"]) / "history.csv")
        told = [n for n in notes("epoch_end") if n["key"] == cell["key"]]
        assert [n["figures"]["loss"] for n in told] == [n["loss"] for n in told] == list(history["loss"])
        assert [n["valid"] for n in told] == list(history["valid_top1"])
        assert [(n["epoch"], n["num_epochs"]) for n in told] == [(epoch, 3) for epoch in history["epoch"]]
        begun = [n["epoch"] for n in notes("epoch_start") if n["key"] == cell["key"]]
        assert begun == list(history["epoch"])


@pytest.mark.usefixtures("no_plots")
def test_the_hook_of_the_page(write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    hooks, *_ = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
    (in_tmp / "my_hook.py").write_text(code)
    monkeypatch.syspath_prepend(in_tmp)
    assert main([str(write(with_hooks(small, *hooks["experiments"]["hooks"]))), "-j", "1", "-q"]) == 0
    told = [json.loads(line) for line in Path("cells.jsonl").read_text().splitlines()]
    assert [line["top1"] for line in told] == list(pd.read_csv(RESULTS / "results.csv")["top1"])
    assert Path("more.jsonl").read_text() == Path("cells.jsonl").read_text()


@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_events_of_several_workers_reach_the_hook(write: Any, small: dict[str, Any]) -> None:
    small["experiments"]["numNets"] = 2
    assert main([str(write(with_hooks(small, RECORDER))), "-j", "2", "-q"]) == 0
    keys = set(pd.read_csv(RESULTS / "results.csv")["cell"])
    for method in ("cell_start", "cell_end"):
        assert sorted(n["cell"]["key"] for n in notes(method)) == sorted(keys)
    assert {n["key"] for n in notes("epoch_end")} == keys
    assert len(notes("epoch_end")) == 2 * 2 + 4 * 1


@pytest.mark.usefixtures("no_plots")
def test_hooks_are_in_no_key_and_are_not_called_if_nothing_is_computed(write: Any, small: dict[str, Any]) -> None:
    plain = plan_experiment(load(write(with_hooks(small))), Machine("cpu")).computed
    path = write(with_hooks(small, RECORDER))
    assert plan_experiment(load(path), Machine("cpu")).computed == plain
    assert main([str(path), "-j", "1", "-q"]) == 0
    written = Path("notes.jsonl").read_text()
    assert main([str(path), "-j", "1", "-q"]) == 0
    assert Path("notes.jsonl").read_text() == written


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("settings", [{}, {"leave": True}, {"times": 1}])
def test_a_failing_hook_costs_nothing(
    write: Any, small: dict[str, Any], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    small["retraining"]["numEpochs"] = 2
    failing = {"name": "hooks_of_tests:Failing", "settings": settings}
    assert main([str(write(with_hooks(small, failing, RECORDER))), "-j", "1", "-q"]) == 0
    said = capsys.readouterr().err
    kind = "SystemExit" if settings.get("leave") else "RuntimeError"
    assert said.count(f"hook hooks_of_tests:Failing failed in epoch_end: {kind}: boom") == 1
    assert "hooks_of_tests.py:" in said
    assert "Traceback" not in said
    assert said.count("is not called again") == (0 if "times" in settings else 1)
    assert Path("calls").read_text() == ("6" if "times" in settings else "3")
    assert set(pd.read_csv(RESULTS / "results.csv")["status"]) == {"done"}
    assert len(notes("epoch_end")) == 6, "the other hook is called all the same"


@pytest.mark.usefixtures("no_plots")
def test_a_misspelt_method_is_told_once_and_debug_shows_tracebacks(
    write: Any, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(with_hooks(small, "hooks_of_tests:HalfDead")))
    assert main([path, "-j", "1", "-q", "--debug"]) == 0
    said = capsys.readouterr().err
    warning = "hook hooks_of_tests:HalfDead: cell_ends is not a method of a hook and is not called. Did you mean"
    assert said.count(f"{warning} 'cell_end'?") == 1
    assert said.count("is not a method") == 1
    assert said.count("Traceback (most recent call last)") == 1
    assert "raise self.error(" in said


@pytest.mark.usefixtures("no_plots")
def test_an_interruption_in_a_hook_ends_the_run(write: Any, small: dict[str, Any]) -> None:
    failing = {"name": "hooks_of_tests:Failing", "settings": {"interrupt": True}}
    assert main([str(write(with_hooks(small, failing, RECORDER))), "-j", "1", "-q"]) == EXIT_INTERRUPTED
    assert notes("run_end")[0]["counts"] == {"pending": 3}


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("mlflw", "unknown hook 'mlflw'. Did you mean 'mlflow'?"),
        ("Log", "unknown hook 'Log'. Known are mlflow; name code of your own as module:function or module:class."),
        ("no_such_module:Hook", "cannot find the module 'no_such_module'"),
        ("hooks_of_tests:Recordr", "Did you mean 'Recorder'?"),
        ("hooks_of_tests:refuses", "'hooks_of_tests:refuses' with settings {} raised ValueError: no such server"),
        ("hooks_of_tests:NoHook", "must make an object with at least one of the methods run_start, "),
        ({"name": "hooks_of_tests:Recorder", "settings": {"wrod": 1}}, "raised TypeError: "),
    ],
)
def test_hooks_that_cannot_be_made_are_errors_before_any_training(
    write: Any, small: dict[str, Any], hook: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(with_hooks(small, hook))
    assert main([str(path), "-j", "1", "-q"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "small.yaml" in said
    assert "experiments.hooks[0]" in said
    assert not Path("data/trained_networks").exists()


@pytest.mark.usefixtures("no_plots")
def test_hooks_are_the_same_for_all_variants(write: Any, small: dict[str, Any], capsys: Any) -> None:
    small["customizations"] = [{"key": ["experiments", "hooks"], "value": ["mlflow"]}]
    assert main([str(write(small)), "--plan"]) == 2
    assert "must be the same for all" in capsys.readouterr().err


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow, made once: its migrations take seconds."""
    pytest.importorskip("mlflow", reason="needs pip install 'experiment[mlflow]'")
    import warnings

    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MlflowClient(uri).search_experiments()
    return uri


def logged(database: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The run of an experiment, and those of its cells by name."""
    from mlflow import MlflowClient

    client = MlflowClient(database)
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    cells = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in cells} <= {parent.info.run_id}
    assert len({run.data.tags["experiment.cell"] for run in cells}) == len(cells), "one run per cell"
    return parent, {run.info.run_name: run for run in cells}


@pytest.mark.filterwarnings("ignore")  # of MLflow and the packages under it
@pytest.mark.usefixtures("no_plots")
def test_mlflow_has_what_the_results_have(
    write: Any, small: dict[str, Any], database: str, faulty: Any, in_tmp: Path
) -> None:
    from mlflow import MlflowClient

    hook = {"name": "mlflow", "settings": {"tracking_uri": database, "experiment_name": "whole"}}
    small = with_hooks(small, hook)
    small["experiments"]["methods"] = ["WT", faulty("raise")]
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 1
    parent, cells = logged(database, "whole")
    assert parent.info.status == "FAILED"
    failed = cells.pop("raise keep 0.1 net 0")
    assert (failed.info.status, failed.data.tags["experiment.status"]) == ("FAILED", "failed")
    assert "boom" in failed.data.tags["mlflow.note.content"]
    frame = pd.read_csv(RESULTS / "results.csv").set_index("cell")
    assert len(cells) == 4
    for run in cells.values():
        key, row = run.data.tags["experiment.cell"], frame.loc[run.data.tags["experiment.cell"]]
        assert run.info.status == "FINISHED"
        assert {run.data.params[n] for n in ("network", "dataset", "method", "label", "net", "seed")} == {
            "lenet300_100", "Digits", row["method"], row["label"], "0"
        }  # fmt: skip
        assert run.data.params.get("keep") == (None if row["method"] == "Reference" else str(row["keep_target"]))
        for name in ("top1", "loss", "parameters", "flops", "bytes_file", "keep_parameters"):
            assert run.data.metrics[name] == pytest.approx(row[name])
        folder = Path(run.data.tags["experiment.folder"])
        assert folder.name.endswith(key)
        history = pd.read_csv(folder / "history.csv")
        steps = MlflowClient(database).get_metric_history(run.info.run_id, "epoch/valid_top1")
        assert [(s.step, s.value) for s in steps] == list(zip(history["epoch"], history["valid_top1"], strict=True))
    before = {run.info.run_id: run.info.end_time for run in cells.values()}
    (in_tmp / "mended").touch()
    assert main([path, "-j", "1", "-q", "--retry-failed"]) == 0
    parent, cells = logged(database, "whole")
    assert parent.info.status == "FINISHED"
    assert cells.pop("raise keep 0.1 net 0").info.status == "FINISHED"
    assert {run.info.run_id: run.info.end_time for run in cells.values()} == before, "what was done is not logged again"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_after_an_interruption_and_in_a_search(database: str, tmp_path: Path) -> None:
    from experiment.hooks.mlflow_runs import MLflowRuns

    run = Run("interrupted", tmp_path, 1, {"description": "how it ends"})
    cell = CellFacts("k", "WT net 0", tmp_path / "k", "lenet5", "Digits", "", "WT", "WT", None, 0, 0, 3)
    hook = MLflowRuns(database)
    hook.run_start(run)
    hook.cell_start(cell)
    for epoch in (0, 1, 0, 1):  # two networks that a search tries
        hook.epoch_end(cell, Epoch(epoch, 2, 0.5, None, {"epoch": epoch, "loss": 0.5, "valid_loss": None}))
    hook.run_end(run, {"pending": 1})
    parent, cells = logged(database, "interrupted")
    assert [parent.info.status, cells["WT net 0"].info.status] == ["KILLED", "KILLED"]
    assert parent.data.tags["mlflow.note.content"] == "how it ends"
    history = hook._client.get_metric_history(cells["WT net 0"].info.run_id, "epoch/loss")
    assert [each.step for each in history] == [0, 1, 2, 3]
    again = MLflowRuns(database)
    again.run_start(run)
    again.cell_end(cell, {"format": 1, "status": "infeasible", "error": "too small"})
    again.run_end(run, {"infeasible": 1})
    parent, cells = logged(database, "interrupted")
    assert [parent.info.status, cells["WT net 0"].info.status] == ["FINISHED", "FINISHED"]
    assert cells["WT net 0"].data.tags["experiment.status"] == "infeasible"
