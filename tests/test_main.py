"""The command line: what it says, how it ends, and how little it needs to plan."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiment.main import main

ROOT = Path(__file__).resolve().parent.parent
DEMO = str(ROOT / "param/digits/prune/lenet5.yaml")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no parameter file given"),
        (["nowhere.yaml"], "nowhere.yaml"),
        ([DEMO, "-j", "0"], "-j: must be at least 1"),
        ([DEMO, "-i", "1"], "-i: must be from 0 to N-1"),
        ([DEMO, "-j", "2", "-i", "2"], "-i: must be from 0 to N-1"),
        ([DEMO, "--set", "training.numEpoch=3"], "numEpochs"),
        ([DEMO, "--set", "training"], "KEY=VALUE"),
        ([DEMO, "--set", "network.name=lenet55"], "--set network.name: unknown network 'lenet55'"),
        ([DEMO, "--device", "tpu"], "--device"),
        ([DEMO, "--device", "cuda:1", "--executor", "ray"], "--device cuda:1: Ray assigns GPUs itself"),
        ([DEMO, "--executor", "ray"], "Ray is not installed. Use: python -m pip install 'experiment[ray]'"),
    ],
)
def test_a_wrong_call_ends_with_2_and_one_clear_line(
    arguments: list[str], part: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert part in error
    assert "Traceback" not in error


def test_the_errors_of_all_files_come_together(tmp_path: Path, capsys: Any) -> None:
    for name, mode in (("a", "retrian"), ("b", "cascde")):
        (tmp_path / f"{name}.yaml").write_text(f"experiments: {{mode: {mode}}}\n")
    assert main([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]) == 2
    error = capsys.readouterr().err
    assert "a.yaml:1" in error
    assert "b.yaml:1" in error


def test_a_plan_is_json_lines_with_every_promised_field(capsys: Any) -> None:
    assert main([DEMO, "--plan=json"]) == 0
    cells = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert cells
    promised = "file variant network dataset method net repetition keep_target mode epochs_train epochs_retrain status"
    assert all(set(promised.split()) <= set(cell) for cell in cells)
    assert {cell["network"] for cell in cells} == {"lenet5"}


def test_planning_imports_no_torch_and_needs_no_data(tmp_path: Path) -> None:
    code = (
        "import sys; from experiment.main import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'torchvision', 'pandas', 'matplotlib', 'numpy', 'sklearn', 'ray'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(status)"
    )
    for arguments in (["--plan", "--device", "cpu"], ["--plan=json", "--device", "cpu", "--executor", "ray"]):
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT / "param/cifar/retrainsweep/resnet20.yaml"), *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "resnet20" in done.stdout


def test_the_schema_is_json_schema(capsys: Any) -> None:
    assert main(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"network", "training", "experiments"} <= set(schema["properties"])


def test_debug_shows_where_an_error_comes_from(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("network: 3\n")
    assert main([str(path), "--plan"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main([str(path), "--plan", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "in _plans" in error


def test_a_mistake_of_the_program_is_no_advice_about_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "a constant that is wrong")

    monkeypatch.setattr("experiment.main._run", mistaken)
    with pytest.raises(FileNotFoundError):
        main(["any.yaml"])


def test_help_names_the_exit_statuses(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "130" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "exec('raise KeyboardInterrupt')"])
def test_an_interruption_ends_with_130_wherever_it_comes(how: str) -> None:
    """Python remembers one that passed through code from text, and ends by the signal although it was caught."""
    code = (
        "import sys; from experiment import main; sys.argv[1:] = ['a.yaml']\n"
        f"def interrupted(*options): {how}\n"
        "main._run = interrupted\n"
        "main.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.endswith("the same command continues from here\n")
