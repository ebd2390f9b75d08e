from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiment import clock as module
from experiment.clock import Clock
from experiment.main import main
from experiment.run.timing import Timing


def test_workers_parts_add_up_to_the_wall_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    with clock.part("planning"):
        now[0] += 10
    timing = Timing(clock)
    timing.hire(2)
    with clock.part("tables and plots"):  # while the workers work
        now[0] += 70
    timing.add({"training": 60, "test": 4}, workers=2)
    timing.add({"training": 40}, workers=2)
    timing.dismiss()
    with clock.part("tables and plots"):
        now[0] += 20
    timing.write(tmp_path)
    written = json.loads((tmp_path / "timing.json").read_text())
    parts = {"planning": 10, "training": 50, "test": 2, "tables and plots": 20, "idle": 18}
    assert written["seconds"] == parts
    assert (written["wall_seconds"], written["workers"], written["share_of_training_and_test"]) == (100, 2, 0.52)
    assert str(timing) == "52% of 1 min 40 s training and testing; tables and plots 20%, idle 18%, planning 10%"


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_says_where_its_time_went(
    write: Any, small: dict[str, Any], in_tmp: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(small)), "-j", workers]) == 0
    written = json.loads((in_tmp / "data/results/small/timing.json").read_text())
    seconds = written["seconds"]
    assert sum(seconds.values()) == pytest.approx(written["wall_seconds"], abs=0.15)  # of rounding
    names = {"training", "augmentation", "validation", "checkpoints", "test", "compression", "storing", "start-up"}
    assert names <= seconds.keys()
    assert all(value >= 0 for value in seconds.values())
    assert written["workers"] == int(workers)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time: ")]
    assert len(told) == 1
    assert "training and testing" in told[0]


@pytest.mark.usefixtures("no_plots")
def test_a_run_with_nothing_to_do_keeps_the_timing_of_the_one_that_worked(
    write: Any, small: dict[str, Any], in_tmp: Path
) -> None:
    path = str(write(small))
    assert main([path, "-q", "-j", "1"]) == 0
    file = in_tmp / "data/results/small/timing.json"
    before = file.read_bytes()
    assert main([path, "-q", "-j", "1"]) == 0
    assert file.read_bytes() == before
