"""`--status`: what it says of processes that run, were killed, are silent or never started; it writes nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiment.config import load
from experiment.main import main
from experiment.run.cell.events import Advanced, Busy, CellDone, EpochDone, Started
from experiment.run.grid.plan import ExperimentPlan, Machine, plan_experiment
from experiment.run.machine import recorded_machine
from experiment.run.status import _span, status_text
from experiment.run.workers.live_state import LIVE, SILENT, LiveFiles, LiveState, read_live

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def plan(write: Callable[..., Path], small: dict[str, Any]) -> ExperimentPlan:
    return plan_experiment(load(write(small)), Machine("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The results folder of the small experiment."""
    place = tmp_path / "data/results/small"
    place.mkdir(parents=True)
    return place


def said(plan: ExperimentPlan, folder: Path, results: dict[str, Any] | None = None) -> str:
    return "\n".join(status_text(plan, results or {}, folder))


def state_of(folder: Path, **changes: object) -> None:
    """A live state in a file, by default of a process that runs on another machine."""
    now = time.time()
    state = LiveState(host="far", pid=7, born="1", device="cpu", started=now - 60, heartbeat=now)
    (folder / LIVE).mkdir(exist_ok=True)
    name = f"{changes.get('host', 'far')}-{changes.get('pid', 7)}.json"
    (folder / LIVE / name).write_text(json.dumps(state.model_dump() | changes))


def test_before_the_first_run_nothing_runs_and_nothing_is_written(
    write: Callable[..., Path], small: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    path = write(small)
    assert main([str(path), "--status"]) == 0
    assert (
        capsys.readouterr().out
        == "small: 0 of 5 cells done, 5 open\n  never started: there is no folder data/results/small\n"
    )
    assert not (tmp_path / "data/results").exists()


def test_jobs_that_slurm_has_not_started_are_hinted_at(plan: ExperimentPlan, folder: Path) -> None:
    (folder / "slurm").mkdir()
    (folder / "slurm/array.json").write_text('{"format": 1, "array": "31"}')
    assert said(plan, folder).endswith("nothing runs; `squeue -j 31` lists jobs that wait")
    (folder / "slurm/array.json").write_text('{"array": "31; rm"}')
    assert said(plan, folder).endswith("nothing runs")


def test_status_imports_no_torch(write: Callable[..., Path], small: dict[str, Any], tmp_path: Path) -> None:
    code = (
        "import sys; from experiment.main import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules); assert not heavy, heavy; "
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(small)), "--status"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_events_of_two_workers_become_lines(plan: ExperimentPlan, folder: Path) -> None:
    reference, first, second, *_ = plan.cells
    with LiveFiles([folder], "cuda", (1, 4)) as live:
        assert "starting   host" in said(plan, folder)
        live.show(0, "a", Started("WT keep 0.5 net 0", 4.0, first.key))
        live.show(0, "b", Started("WT keep 0.1 net 0", 4.0, second.key))
        live.show(0, "a", Advanced(1.0))
        live.show(0, "a", EpochDone("WT keep 0.5 net 0", 0, 3, 0.1, None, {}))
        live.show(0, "b", Busy("WT keep 0.1 net 0", "spectra 3/9"))
        live.show(0, "b", CellDone("x", "SVD keep 0.5 net 0", "failed", None, None, "no\nmemory \udce9"))
        live.show(0, "c", Started("SVD keep 0.1 net 0", 4.0, "y"))
        lines = said(plan, folder, {reference.key: {"status": "done"}}).splitlines()
    assert lines[0] == "small: 1 of 5 cells done, 1 under way, 3 open"
    assert lines[1].startswith("  under way  WT keep 0.5 net 0, 25%, epoch 1 of 3 done, since ")
    assert lines[1].endswith(f"host {socket.gethostname()}, pid {os.getpid()}, cuda, share 1 of 4")
    assert "SVD keep 0.5 net 0: FAILED: no\\nmemory \\udce9" in "\n".join(lines)
    assert any(line.startswith("  expected   end ") for line in lines)
    assert not (folder / LIVE).exists()  # a finished process leaves nothing


def test_a_run_shows_itself_and_leaves_nothing(
    write: Callable[..., Path], small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path, seen = write(small), []
    show = LiveFiles.show

    def look(self: LiveFiles, experiment: int, worker: str, event: Any) -> None:
        show(self, experiment, worker, event)
        if isinstance(event, Started):
            capsys.readouterr()
            assert main([str(path), "--status"]) == 0
            seen.append(capsys.readouterr().out)

    monkeypatch.setattr(LiveFiles, "show", look)
    assert main([str(path), "-j", "1", "-q"]) == 0
    assert "0 of 5 cells done, 1 under way, 4 open" in seen[0]
    assert "under way  Reference net 0" in seen[0]
    assert "1 of 5 cells done, 1 under way, 3 open" in seen[1]
    assert "under way  measurements and report" in seen[-1]
    assert "5 of 5 cells done\n" in seen[-1]
    capsys.readouterr()
    assert main([str(path), "--status"]) == 0
    assert capsys.readouterr().out == "small: 5 of 5 cells done\n  nothing runs\n"
    assert not list(Path("data/results/small").glob(".live*"))


def test_a_killed_process_is_named_and_the_next_one_forgets_it(plan: ExperimentPlan, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from experiment.run.workers.live_state import *\n"
        "with LiveFiles([Path(sys.argv[1])], 'cpu', None) as live:\n"
        "    live.show(0, 'w', Started('WT keep 0.5 net 0', 2.0, 'k'))\n"
        "    print('there', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        state_of(folder)
        assert "under way  WT keep 0.5 net 0" in said(plan, folder)
        assert "host far, pid 7" in said(plan, folder)  # two at once
        process.send_signal(signal.SIGKILL)
        process.wait()
        if sys.platform == "linux":
            text = said(plan, folder)
            assert f"killed     host {socket.gethostname()}, pid {process.pid}" in text
            assert "in WT keep 0.5 net 0; the same command continues" in text
            with LiveFiles([folder], "cpu", None):
                assert {state.pid for state in read_live(folder)[0].values()} == {7, os.getpid()}


def test_another_process_with_the_same_pid_is_not_taken_for_it(plan: ExperimentPlan, folder: Path) -> None:
    state_of(folder, host=socket.gethostname(), pid=os.getpid(), born="long ago")
    assert "killed" in said(plan, folder)


def test_a_process_elsewhere_that_shows_no_sign_of_life(plan: ExperimentPlan, folder: Path) -> None:
    state_of(folder, heartbeat=time.time() - SILENT - 720, done=3.0)
    assert "waiting    host far, pid 7" in said(plan, folder)
    assert "no sign of life for 14 min" in said(plan, folder)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[[[", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"pid": 1' + b"0" * 5_000 + b"}", b" " * 5_000_000,
        b'{"format": 2}',
    ],
)  # fmt: skip
def test_what_is_no_state_is_ignored_with_a_note(content: bytes, plan: ExperimentPlan, folder: Path) -> None:
    state_of(folder)
    (folder / LIVE / "bad.json").write_bytes(content)
    text = said(plan, folder)
    assert "bad.json is no live state" in text
    assert "host far, pid 7" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "7"}, {"pid": -1}, {"heartbeat": 1e300}, {"started": "x"}, {"under_way": {"a": 3}}, {"share": "0/4"},
        {"shares": 0}, {"messages": [{"at": 1.0, "text": 5}]}, {"done": float("nan")}, {"host": None},
    ],
)  # fmt: skip
def test_values_of_wrong_types_are_no_state(changes: dict[str, Any], plan: ExperimentPlan, folder: Path) -> None:
    state_of(folder, **changes)
    assert ".json is no live state" in said(plan, folder)


def test_a_state_that_cannot_be_written_is_reported_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / LIVE).write_text("in the way")
    with LiveFiles([folder], "cpu", None) as live:
        for _ in range(3):
            live.show(0, "a", Started("WT", 1.0))
    assert caplog.text.count("--status will not show this process") == 1


def test_failures_are_listed_with_their_reasons(plan: ExperimentPlan, folder: Path) -> None:
    results = {cell.key: {"status": "failed", "error": "no memory"} for cell in plan.cells[1:3]}
    results[plan.cells[3].key] = {"status": "infeasible", "error": "too small"}
    text = said(plan, folder, results)
    assert "0 of 5 cells done, 2 failed, 1 infeasible, 2 open" in text
    assert text.count("  failed     WT keep 0.5 net 0: no memory") == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (1500, "25 min"), (7500, "2 h 5 min"), (200_000, "2 days 7 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert _span(seconds) == words


def test_the_status_is_that_of_the_machine_that_runs(tmp_path: Path) -> None:
    found = {"device": "cuda:1 (NVIDIA H200)", "precision_auto": "bf16", "processes_per_training": 4}
    (tmp_path / "environment.json").write_text(json.dumps(found))
    assert recorded_machine(tmp_path) == Machine("cuda:1", 4, "bf16")
    for damaged in ({}, [], {**found, "precision_auto": "fp7"}, {**found, "device": 3}):
        (tmp_path / "environment.json").write_text(json.dumps(damaged))
        assert recorded_machine(tmp_path) is None
    assert recorded_machine(tmp_path / "nowhere") is None
