"""The scripts, run as a user runs them, on synthetic experiments."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import experiment
from experiment.errors import ExperimentError, StoreError
from experiment.report.plots import gallery

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("results_viewer", "retrain_sweep", "load_networks", "rank_study")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_help_and_say_what_to_do_without_results(
    run: Any, refused: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(name, "--help")
    assert "PARAM" in capsys.readouterr().out
    (tmp_path / "data" / "results").mkdir(parents=True)  # otherwise those of the repository are used
    assert re.search(r"Run an experiment first|None of the 0 experiments|No ranks found", refused(name))
    assert "nowhere: no results found" in refused(name, "nowhere")


def test_the_catalogue_of_nothing_is_an_error_and_makes_nothing(refused: Any, tmp_path: Path) -> None:
    assert "no experiments below" in refused("catalogue", "--results", str(tmp_path / "nonexistent"))
    assert not (tmp_path / "nonexistent").exists()


def test_the_viewer_prints_fronts_as_plain_text(
    run: Any, refused: Any, synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "GALLERY", ())
    rows = [row | {"pareto": "flops"} for row in synthetic.grid(("ALDS",), nets=1, keeps=(0.5,))]
    synthetic.write_experiment(tmp_path / "e", rows)
    printed = run("results_viewer", "e", "--pareto")
    assert "* marks the costs" in printed
    assert "\\" not in printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert len({tuple(place for place, c in enumerate(line) if c == "|") for line in table}) == 1, "aligned"
    assert "not allowed with argument --compare" in refused("results_viewer", "--compare", "e", "e", "--pareto")


def test_scripts_run_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "script" / "retrain_sweep.py"), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "None of the 0 experiments" in done.stderr


def test_in_a_notebook_the_command_line_is_ignored_and_the_end_is_an_error(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    (tmp_path / "data" / "results").mkdir(parents=True)
    with pytest.raises(ExperimentError, match="Run an experiment first"):
        run("results_viewer", "--this-is-the-kernels")


def test_the_viewer_draws_and_prints_every_experiment(
    run: Any, synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "GALLERY", (lambda *of: itertools.islice(gallery.tradeoffs(*of), 1),))
    for name in ("a", "b/c"):
        rows = synthetic.grid(("ALDS",), nets=1, keeps=(0.5, 0.4))
        synthetic.write_experiment(tmp_path / "data" / "results" / name, rows)
    printed = run("results_viewer", "--tex", "all.tex")
    assert printed.count("| ALDS |") == 2
    for name in ("a", "b/c"):
        assert (tmp_path / "data" / "results" / name / "plots" / "tradeoff-top1-parameters.pdf").is_file()
        assert f"data/results/{name}/report.html" in printed
    assert (tmp_path / "all.tex").read_text().count("ALDS &") == 1  # equal experiments are one block of the table


def test_the_viewer_goes_on_behind_a_damaged_experiment(refused: Any, synthetic: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthetic.write_experiment(tmp_path / "data" / "results" / name, [synthetic.reference_row(0)])
    (tmp_path / "data" / "results" / "a" / "environment.json").write_text("{")
    assert "environment.json: is damaged: it is not valid JSON" in refused("results_viewer")
    assert (tmp_path / "data" / "results" / "b" / "report.md").is_file()


def test_a_parameter_file_is_compared_by_its_own_run(
    run: Any, synthetic: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = synthetic.grid(("ALDS",), nets=1, keeps=(0.5,))
    for name in ("a", "a@0123", "b"):
        synthetic.write_experiment(tmp_path / "data" / "results" / name, rows)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(synthetic.parameters_of()))
    for second, own in (("b.yaml", True), ("data/results/a@0123", False)):
        with pytest.raises(SystemExit):
            run("results_viewer", "--compare", "a.yaml", second)
        printed = capsys.readouterr().out
        assert "ALDS (a)" in printed
        assert ("ALDS (b)" in printed) == own
        assert ("ALDS (a@0123)" in printed) != own


def test_the_sweep_is_drawn_and_tabulated(run: Any, refused: Any, synthetic: Any, tmp_path: Path) -> None:
    results = tmp_path / "elsewhere"
    synthetic.write_experiment(results / "plain", synthetic.grid(("ALDS",), nets=1, keeps=(0.5,)))
    assert "None of the 1 experiments found sweeps over retraining" in refused(
        "retrain_sweep", "--results", str(results)
    )
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
    refused: Any, synthetic: Any, tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [synthetic.reference_row(0), *synthetic.curve([(0.5, 0.9)])]
    synthetic.write_experiment(tmp_path / "data" / "results" / "e", rows)
    assert "no finished cell with label FT. Available: Reference, ALDS" in refused("load_networks", "--method", "FT")
    assert "no compressed network of that kind" in refused("load_networks", "--method", "Reference")

    def damaged(*_: Any, **__: Any) -> None:
        raise StoreError("network.pt is damaged")

    monkeypatch.setattr(experiment, "load_network", damaged)
    assert "network.pt is damaged" in refused("load_networks")
