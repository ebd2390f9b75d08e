"""The command for machines with a GPU: what it writes when steps end well, fail, or are over their limit."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FILE = Path(__file__).with_name("run.py")


@pytest.fixture
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_run", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step_of(run: ModuleType, folder: Path, code: str, limit: float = 60) -> dict[str, Any]:
    """The step as the file has it after a process with this code."""
    program = folder / "step.py"
    program.write_text(code)
    run.__file__ = str(program)
    report = run.Report(folder / "gpu.json", {"device": "cpu"})
    run.in_own_process(report.add("tests"), report, limit, argparse.Namespace(device="cpu", quick=True))
    content = json.loads((folder / "gpu.json").read_text())
    assert not content["finished"]
    return dict(content["steps"][0])


def test_rows_are_kept(run: ModuleType, tmp_path: Path) -> None:
    step = step_of(run, tmp_path, "print('{\"a\": 1}')\nprint('{\"a\": 2}')")
    assert (step["status"], step["rows"]) == ("done", [{"a": 1}, {"a": 2}])


def test_a_failure_keeps_the_rows_before_it_and_its_error(run: ModuleType, tmp_path: Path) -> None:
    step = step_of(run, tmp_path, "print('{\"a\": 1}', flush=True)\nraise ValueError('no such kernel')")
    assert (step["status"], step["rows"]) == ("failed", [{"a": 1}])
    assert step["reason"].endswith("ValueError: no such kernel")


def test_a_step_over_its_limit_is_stopped_and_says_where(run: ModuleType, tmp_path: Path) -> None:
    code = 'import time\nprint(\'{"a": 1}\')\nprint(\'{"running": "test_b"}\', flush=True)\ntime.sleep(600)'
    step = step_of(run, tmp_path, code, limit=2)
    assert (step["status"], step["rows"]) == ("stopped", [{"a": 1}])
    assert step["reason"] == "it reached its limit of 2 s in test_b (rows done: 1)"


@pytest.mark.parametrize("budget", ["-5", "59", "nan", "inf", "soon"])
def test_budgets_in_which_nothing_can_run_are_refused(
    run: ModuleType, budget: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--budget", budget])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "--budget" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("device", "out", "oldest", "reason"),
    [
        ("cuda", "gpu.json", "2.11", "finds no GPU"),
        ("cpu", "no/such/gpu.json", "2.11", "existing folder"),
        ("cpu", ".", "2.11", "existing folder"),
        ("cpu", "gpu.json", "99.0", "99.0 or later"),
    ],
)
def test_what_hinders_every_step_is_said_once(
    run: ModuleType, device: str, out: str, oldest: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "oldest_torch", lambda: oldest)
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", device, "--out", str(tmp_path / out)])
    assert run.main() == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_loops_take_turns_and_an_error_stops_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FILE.parent)
    from training_speed import ROUNDS, measure_in_turns

    calls: list[str] = []
    rows: list[dict[str, Any]] = []

    def fails() -> int:
        calls.append("b")
        raise ValueError("no kernel")

    loops = {"a": lambda: calls.append("a") or 1, "b": fails, "c": lambda: calls.append("c") or 1}
    measure_in_turns(loops, {"batch": 16}, rows.append)
    assert "".join(calls) == "abc" + "ac" * ROUNDS
    assert rows[0] == {"running": "a, batch 16"}
    results = [row for row in rows if "running" not in row]
    assert [row["loop"] for row in results] == ["a", "b", "c"]
    assert results[1]["error"] == "ValueError: no kernel"
    assert results[2]["images_per_s"] > 0


@pytest.mark.parametrize(
    ("step", "trouble"),
    [
        ({"status": "done", "rows": [{"outcome": "passed"}]}, 0),
        ({"status": "left out", "reason": "no time", "rows": []}, 0),
        ({"status": "done", "rows": [{"outcome": "failed", "error": "x"}, {"outcome": "passed"}]}, 1),
        ({"status": "done", "rows": [{"network": "a", "error": "x"}]}, 1),
        ({"status": "stopped", "reason": "too long", "rows": []}, 1),
    ],
)
def test_the_exit_status_says_whether_something_failed(run: ModuleType, step: dict[str, Any], trouble: int) -> None:
    content = {"steps": [{"name": "throughput", **step}]}
    assert len(run.troubles(content)) == trouble
    assert run.table(content).startswith(f"throughput: {step['status']}")


def test_every_dependency_is_asked_for(run: ModuleType) -> None:
    assert {"torch", "torchvision", "PyYAML", "pandas", "matplotlib", "tqdm", "scipy", "pytest"} <= set(run.needed())
    assert run.absent(["pytest", "no-such-package"]) == ["no-such-package"]


def test_the_command(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--quick", "--only", "environment", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["run.py", *options])
    assert run.main() == 0
    content = json.loads(out.read_text())
    assert content["finished"]
    steps = {step["name"]: step for step in content["steps"]}
    assert list(steps) == list(run.STEPS)
    assert steps["environment"]["rows"][0]["torch"]
    assert "0 passed" not in run.table(content)
    assert steps["tests"] == {"name": "tests", "status": "left out", "reason": "not asked for", "rows": []}
