"""Killed, interrupted, told to end, started twice, left by a worker: the same command ends with the same results."""

import os
import random
import re
import shutil
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiment.main import main
from experiment.run.signals import raise_if_stopped, stop_on_sigterm
from experiment.training import checkpoint

TIMES = ["seconds_compress", "seconds_retrain", "pareto"]
EPOCHS = 40  # long enough that what waits for one of them is there before the last

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_plots")]


@pytest.fixture
def path(write: Any, small: dict[str, Any]) -> str:
    """A cascade after a training of many short epochs."""
    small["training"] |= {"numEpochs": EPOCHS, "lrSchedulers": []}
    small["experiments"] |= {"mode": "cascade", "methods": ["WT", "SVD"]}
    return str(write(small))


@pytest.fixture(scope="module")
def whole() -> dict[str, pd.DataFrame]:
    """The results of an uninterrupted run, computed by the first test that asks."""
    return {}


@pytest.fixture
def expected(whole: dict[str, pd.DataFrame], path: str, tmp_path: Path) -> pd.DataFrame:
    if not whole:
        assert main([path, "-j", "1", "-q", "--results", "whole"]) == 0
        whole["table"] = table("whole")
        shutil.rmtree(tmp_path / "data/trained_networks")
    return whole["table"]


def table(results: str = "data/results") -> pd.DataFrame:
    return pd.read_csv(f"{results}/small/results.csv", dtype=str).drop(columns=TIMES)


def leftovers(folder: Path) -> list[str]:
    """What only a process that is at work may have lying about."""
    found = [*folder.glob("data/**/.writing-*"), *folder.glob("data/**/.partial-*"), *folder.glob("data/**/.results.*")]
    return [str(place.relative_to(folder)) for place in found]


def is_alive(pid: int) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def last_epoch(said: str) -> int:
    """Of those that were told of, counted from 1."""
    return int(re.findall(r" epoch (\d+)/", said)[-1])


def epochs_in(file: Path) -> int:
    return len(torch.load(file, weights_only=True)["records"])


def test_killed_at_random_moments_it_ends_with_the_same_results(
    path: str, expected: pd.DataFrame, forked: Any, tmp_path: Path
) -> None:
    draw, killed = random.Random(1), 0
    while killed < 4:
        process = forked(lambda: main([path, "-j", "1", "-q"]))
        time.sleep(draw.uniform(0.05, 1.2))  # the moment is the test: start, training, cells, tables
        process.send(signal.SIGKILL)
        if process.wait() == 0:
            shutil.rmtree("data")  # it was faster: from the start again
        killed += 1
    assert main([path, "-j", "1", "-q"]) == 0
    pd.testing.assert_frame_equal(table(), expected)
    assert leftovers(tmp_path) == []


@pytest.fixture
def nothing_is_worth_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are written where a training ends or is told to, and at no other time."""
    monkeypatch.setattr(checkpoint, "MAX_SHARE", -1.0)


@pytest.mark.usefixtures("nothing_is_worth_a_file")
def test_told_to_stop_it_keeps_the_last_finished_epoch(
    path: str, expected: pd.DataFrame, forked: Any, tmp_path: Path
) -> None:
    process = forked(lambda: main([path, "-j", "1", "-v"]))
    process.until(lambda: "epoch 3/" in process.said)
    process.send(signal.SIGTERM)
    assert process.wait() == 130
    (file,) = tmp_path.glob("data/trained_networks/.partial-*/checkpoint.pt")
    told, kept = last_epoch(process.said), epochs_in(file)
    assert told <= kept <= told + 1, "an epoch that was told of is on the disk"
    assert process.said.count("the last finished epoch of every running training are kept") == 1
    assert "Traceback" not in process.said
    again = forked(lambda: main([path, "-j", "1", "-v"]))
    assert again.wait() == 0
    assert f"epoch {kept}/" not in again.said
    assert f"epoch {kept + 1}/" in again.said
    pd.testing.assert_frame_equal(table(), expected)
    assert leftovers(tmp_path) == []


def test_told_to_stop_where_python_throws_exceptions_away_it_stops_all_the_same(
    write: Any, small: dict[str, Any], faulty: Any, forked: Any
) -> None:
    small["experiments"]["methods"] = [faulty("lose Ctrl-C"), "SVD"]
    path = str(write(small))
    process = forked(lambda: main([path, "-j", "1"]))
    assert process.wait() == 130
    assert process.said.count("stopping: ") == 1
    assert "SVD" not in process.said


def test_a_worker_told_where_python_throws_exceptions_away_stops_all_the_same(forked: Any) -> None:
    def run() -> int:
        stop_on_sigterm()
        raise_if_stopped()
        weakref.finalize(set(), signal.raise_signal, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            raise_if_stopped()
        return 0

    assert forked(run).wait() == 0


@pytest.mark.usefixtures("quick_workers", "nothing_is_worth_a_file")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_told_to_stop_every_worker_keeps_its_last_finished_epoch(
    write: Any, small: dict[str, Any], forked: Any, tmp_path: Path, number: int
) -> None:
    """A terminal, and Slurm, send the signal to the whole group: to the parent and to its workers."""
    small["retraining"] = {"numEpochs": EPOCHS}
    small["experiments"]["spacing"][0]["values"] = [0.5]
    path = str(write(small))
    process = forked(lambda: main([path, "-j", "2", "-v"]))
    process.until(lambda: all(f"{name} keep 0.5 net 0 epoch 3/" in process.said for name in ("WT", "SVD")))
    process.send(number)
    assert process.wait() == 130
    files = [*tmp_path.glob("data/results/small/cells/.partial-*/checkpoint.pt")]
    assert len(files) == 2
    assert sorted(epochs_in(file) for file in files)[0] >= 3
    assert "Traceback" not in process.said
    again = forked(lambda: main([path, "-j", "1", "-v"]))
    assert again.wait() == 0
    assert "epoch 3/" not in again.said
    assert set(table()["status"]) == {"done"}
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("quick_workers", "nothing_is_worth_a_file")
@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_second_ctrl_c_does_not_wait_for_the_saving(
    path: str, forked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    saving = tmp_path / "saving"

    def never_ends(file: Path, state: Any) -> None:
        saving.write_text(str(os.getpid()))
        time.sleep(3600)

    monkeypatch.setattr(checkpoint, "save_tensors", never_ends)
    process = forked(lambda: main([path, "-j", "1", "-v", "--executor", executor]))
    process.until(lambda: "epoch 3/" in process.said)
    process.send(signal.SIGINT)
    process.until(lambda: saving.exists() and saving.read_text())
    process.send(signal.SIGTERM)  # sent once more by some programs, and not heard
    process.send(signal.SIGINT)
    assert process.wait() == 130, "before the saving ends"
    while is_alive(int(saving.read_text())):  # for a moment after it was killed
        time.sleep(0.01)
    assert main([path, "--plan"]) == 0


def test_ignored_signals_stay_ignored(path: str, forked: Any, tmp_path: Path) -> None:
    """A shell starts background jobs with SIGINT ignored."""

    def run() -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return main([path, "-j", "1", "-v", "--set", "training.numEpochs=6"])

    process = forked(run)
    process.until(lambda: "epoch 2/" in process.said)
    process.send(signal.SIGINT)
    assert process.wait() == 0


def test_two_identical_processes_share_the_work(path: str, expected: pd.DataFrame, forked: Any) -> None:
    both = [forked(lambda: main([path, "-j", "1"])) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sum(process.said.count("WT keep 0.5 net 0: top-1") for process in both) == 1
    pd.testing.assert_frame_equal(table(), expected)


@pytest.mark.usefixtures("quick_workers")
def test_a_share_takes_over_the_reference_of_a_process_that_dies(
    path: str, expected: pd.DataFrame, forked: Any
) -> None:
    """The other one keeps its results elsewhere: only the trained network is shared."""
    first = forked(lambda: main([path, "-j", "2", "-i", "0", "-v", "--results", "elsewhere"]))
    first.until(lambda: "epoch 2/" in first.said)
    first.send(signal.SIGSTOP)  # or it might be done before the other one asks
    second = forked(lambda: main([path, "-j", "2", "-i", "1", "-v"]))
    second.until(lambda: "waiting for another process that trains lenet300_100" in second.said)
    first.send(signal.SIGKILL)
    first.wait()
    assert second.wait() == 0
    assert "Reference net 0 epoch 1/" not in second.said, "what the other one had is not done again"
    assert "Reference net 0 epoch" in second.said
    assert main([path, "-j", "2", "-i", "0", "-q"]) == 0
    pd.testing.assert_frame_equal(table(), expected)


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_that_dies_costs_its_cell_one_retry(
    write: Any, small: dict[str, Any], forked: Any, faulty: Any, tmp_path: Path
) -> None:
    """One method dies once, two always, at one keep ratio of three; --retry-failed tries those again, once mended."""
    small["experiments"]["methods"] = ["WT", faulty("die once"), faulty("exit"), faulty("kill")]
    small["experiments"]["spacing"][0]["values"] = [0.5, 0.1, 0.3]
    path = str(write(small))
    process = forked(lambda: main([path, "-j", "2"]))
    assert process.wait() == 1
    frame = table().set_index(["label", "keep_target"])
    failed = frame[frame["status"] == "failed"]
    assert list(failed.index) == [("exit", "0.1"), ("kill", "0.1")]
    assert (failed["error"] == "tried 2 times: its worker process died (killed, or out of memory)").all()
    assert (frame.drop(failed.index)["status"] == "done").all()
    assert (tmp_path / "died").exists()
    stamps = {place: place.stat().st_mtime_ns for place in tmp_path.glob("data/results/small/cells/*")}
    again = forked(lambda: main([path, "-j", "2", "--retry-failed"]))
    assert again.wait() == 1, "and nothing but that: a retry does not go on for ever"
    (tmp_path / "mended").touch()
    assert forked(lambda: main([path, "-j", "2", "--retry-failed"])).wait() == 0
    assert set(table()["status"]) == {"done"}
    changed = {place.name for place, stamp in stamps.items() if place.stat().st_mtime_ns != stamp}
    assert sorted(name.rpartition("-")[0] for name in changed) == ["exit-n0-r0-0.1", "kill-n0-r0-0.1"]


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_that_is_killed_from_outside_is_replaced(
    path: str, expected: pd.DataFrame, forked: Any, tmp_path: Path
) -> None:
    """SIGKILL in the middle of the reference's training, as the system does that runs out of memory."""
    process = forked(lambda: main([path, "--executor", "processes", "-j", "1", "-v"]))
    process.until(lambda: "epoch 3/" in process.said)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    assert process.wait() == 0
    pd.testing.assert_frame_equal(table(), expected)
    assert leftovers(tmp_path) == []
