"""The scripts, run as a user runs them, on synthetic experiments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import experiment
from experiment.errors import ExperimentError, StoreError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("results_viewer", "retrain_sweep", "load_networks")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_notebooks_with_help(name: str) -> None:
    text = (ROOT / "script" / f"{name}.py").read_text()
    assert len(text.splitlines()) < 120
    assert text.count("\n# %%") >= 3
    assert "._" not in text
    path = ROOT / "script" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert "PARAM" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_say_what_to_do_where_nothing_is_there(run: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "results").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"Run an experiment first|None of the 0 experiments"):
        run(name)
    with pytest.raises(SystemExit, match=r"nowhere: no results found"):
        run(name, "nowhere")


def test_the_viewer_draws_and_prints_every_experiment(run: Any, synthetic: Any, tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        rows = synthetic.grid(("ALDS",), nets=1, keeps=(0.5, 0.4))
        synthetic.write_experiment(tmp_path / "data" / "results" / name, rows)
    printed = run("results_viewer", "--tex", "all.tex")
    assert printed.count("| ALDS |") == 2
    for name in ("a", "b/c"):
        assert (tmp_path / "data" / "results" / name / "plots" / "tradeoff-top1-parameters.pdf").is_file()
        assert f"data/results/{name}/report.html" in printed
    assert (tmp_path / "all.tex").read_text().count("ALDS &") == 1  # equal experiments are one block of the table


def test_a_notebook_shows_the_pictures_and_keeps_its_kernel(
    run: Any, synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a kernel there are no arguments of a command line, and what would end a program is an error."""
    shown: list[str] = []
    display = SimpleNamespace(Image=lambda filename: filename, display=shown.append)
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    (tmp_path / "data" / "results").mkdir(parents=True)  # else those beside the scripts are meant
    with pytest.raises(ExperimentError, match="Run an experiment first"):
        run("results_viewer", "--this-is-the-kernels")
    synthetic.write_experiment(tmp_path / "data" / "results" / "a", synthetic.grid(("ALDS",), nets=1, keeps=(0.5,)))
    run("results_viewer")
    assert [Path(name).name for name in shown] == ["tradeoff-top1-parameters.png"]


def test_the_viewer_goes_on_behind_a_damaged_experiment(run: Any, synthetic: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthetic.write_experiment(tmp_path / "data" / "results" / name, [synthetic.reference_row(0)])
    (tmp_path / "data" / "results" / "a" / "environment.json").write_text("{")
    with pytest.raises(SystemExit, match=r"environment.json: is damaged: it does not hold JSON"):
        run("results_viewer")
    assert (tmp_path / "data" / "results" / "b" / "report.md").is_file()


def test_the_sweep_is_drawn_and_tabulated(run: Any, synthetic: Any, tmp_path: Path) -> None:
    results = tmp_path / "elsewhere"
    synthetic.write_experiment(results / "plain", synthetic.grid(("ALDS",), nets=1, keeps=(0.5,)))
    with pytest.raises(SystemExit, match=r"None of the 1 experiments found sweeps over retraining"):
        run("retrain_sweep", "--results", str(results))
    synthetic.write_experiment(results / "sweep", synthetic.sweep(("ALDS", "SVD"), nets=1))
    printed = run("retrain_sweep", "--results", str(results), "--deltas", "1", "2")
    assert "plain" not in printed
    assert "100.0" in printed.splitlines()[4]  # the whole training again
    assert sum(line.lstrip().startswith(("1.0 ", "2.0 ")) or " 1.0 " in line for line in printed.splitlines()) >= 4
    for ending in ("pdf", "png"):
        assert (results / "sweep" / "plots" / f"retrain_sweep-parameters.{ending}").stat().st_size > 1000


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for loading and testing networks: records what was asked for."""
    asked: list[Any] = []

    def load_network(folder: Any, **which: Any) -> str:
        asked.append(which)
        return str(which.get("method") or which["label"])

    def evaluate(folder: Any, network: str, data: Path) -> dict[str, float]:
        asked.append((network, data))
        return {"loss": 0.25, "top1": 0.9 if network == "Reference" else 0.895, "top5": 0.99}

    monkeypatch.setattr(experiment, "load_network", load_network, raising=False)
    monkeypatch.setattr(experiment, "evaluate", evaluate, raising=False)
    return asked


def test_both_networks_are_loaded_and_tested(run: Any, synthetic: Any, tmp_path: Path, calls: list[Any]) -> None:
    rows = [synthetic.reference_row(0), *synthetic.curve([(0.5, 0.9), (0.2, 0.895), (0.1, 0.5)])]
    synthetic.write_experiment(tmp_path / "data" / "results" / "e", rows)
    printed = run("load_networks")
    asked = {"label": "ALDS", "keep": 0.2, "net": 0, "repetition": 0, "variant": ""}
    assert calls[:2] == [asked, {"method": "Reference", "net": 0, "variant": ""}]
    assert [network for network, _ in calls[2:]] == ["Reference", "ALDS"]
    assert "20.00 % of the parameters" in printed
    assert "90.00" in printed
    assert "89.50" in printed
    run("load_networks", "--method", "ALDS", "--keep", "0.12", "--net", "0")
    assert calls[4]["keep"] == 0.1


def test_what_cannot_be_loaded_is_said(
    run: Any, synthetic: Any, tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [synthetic.reference_row(0), *synthetic.curve([(0.5, 0.9)])]
    synthetic.write_experiment(tmp_path / "data" / "results" / "e", rows)
    with pytest.raises(SystemExit, match=r"no finished cell with label FT. There is: Reference, ALDS"):
        run("load_networks", "--method", "FT")
    with pytest.raises(SystemExit, match=r"no compressed network of that kind"):
        run("load_networks", "--method", "Reference")

    def damaged(*_: Any, **__: Any) -> None:
        raise StoreError("network.pt is damaged")

    monkeypatch.setattr(experiment, "load_network", damaged)
    with pytest.raises(SystemExit, match=r"network.pt is damaged"):
        run("load_networks")
