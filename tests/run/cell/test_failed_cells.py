"""What breaks in one cell is stored with its reason and stops no other; clocks decide nothing."""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment import load_results
from experiment.main import main

RESULTS = Path("data/results/small")

pytestmark = pytest.mark.usefixtures("no_plots")


def table() -> pd.DataFrame:
    return load_results(RESULTS).set_index(["label", "keep_target"])


def stamps() -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in RESULTS.glob("cells/*/result.json")}


FAULTS = {
    "raise": "RuntimeError: boom",
    "refuse": "this network has no layer to my liking.",
    "memory": "MemoryError: too large by far",
    "nan": "the test loss of the network is nan: its outputs are not finite.",
}


@pytest.mark.parametrize("mode", ["retrain", "cascade"])
def test_a_cell_that_breaks_is_told_with_its_reason_and_can_be_tried_again(
    write: Any, small: dict[str, Any], faulty: Any, in_tmp: Path, mode: str, capsys: Any
) -> None:
    """Every method breaks at keep ratio 0.1 alone; SVD cannot reach 0.001, which is no fault."""
    small["experiments"] |= {"mode": mode, "methods": ["SVD", *(faulty(fault) for fault in FAULTS)]}
    small["experiments"]["spacing"][0]["values"] = [0.5, 0.1, 0.001]
    small["retraining"]["numEpochs"] = 0
    path = str(write(small))
    assert main([path, "-j", "1"]) == 1
    rows, told = table(), capsys.readouterr()
    assert rows.loc[("SVD", 0.001), "status"] == "infeasible"
    for fault, reason in FAULTS.items():
        assert rows.loc[(fault, 0.5), "status"] == "done"
        assert (rows.loc[(fault, 0.1), "status"], rows.loc[(fault, 0.1), "error"]) == ("failed", reason)
        assert f"failed: {fault} net 0 keep 0.1: {reason}" in told.out
        (folder,) = RESULTS.glob(f"cells/{fault}-n0-r0-0.1-*")
        assert (folder / "traceback.txt").exists() == (fault in ("raise", "memory")), "what nobody foresaw"
        named = f"traceback: data/results/small/cells/{folder.name}/traceback.txt" in told.out
        assert named == (folder / "traceback.txt").exists()
    if mode == "cascade":
        assert rows.loc[("raise", 0.001), "error"].startswith("the previous cell of the cascade failed (RuntimeErr")
    before = stamps()
    assert main([path, "-j", "1", "-q"]) == 1
    assert stamps() == before, "failed cells stay failed until asked for"
    failed = {name for name in before if name.rpartition("-")[2] in set(rows[rows["status"] == "failed"]["cell"])}
    (in_tmp / "mended").touch()
    assert main([path, "-j", "1", "-q", "--retry-failed"]) == 0
    assert {name for name, stamp in stamps().items() if before[name] != stamp} == failed
    assert set(table()["status"]) == {"done", "infeasible"}


def test_infeasible_budgets_alone_are_no_failure(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"methods": ["SVD"], "spacing": [{"type": "manual", "values": [0.002, 0.001]}]}
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 0
    before = stamps()
    assert list(table()["status"]) == ["done", "infeasible", "infeasible"]
    assert main([path, "-j", "1", "-q", "--retry-failed"]) == 0
    assert stamps() == before


def test_a_network_that_gives_nan(write: Any, small: dict[str, Any], faulty: Any) -> None:
    small["network"]["name"] = "faulty:GivesNaN"
    small["experiments"]["methods"] = ["WT"]
    assert main([str(write(small)), "-j", "1", "-q"]) == 1
    rows = table()
    assert rows["error"].iloc[0] == "the test loss of the network is nan: its outputs are not finite."
    assert rows["error"].iloc[1].startswith("the reference network failed: the test loss of the network is nan")


DATA_DEPENDENT = ["PCA", "SNIP", "SiPP", "PFP", "ThiNet", "KLDS"]


def test_too_few_images_to_calibrate_with(write: Any, small: dict[str, Any], faulty: Any) -> None:
    """One image for validation, and that one for calibration: methods make of it what they can, or say why not."""
    small["network"]["dataset"] = {"name": "faulty:images", "settings": {"size": 10}}
    small["training"] |= {"batchSize": 4}
    small["experiments"] |= {
        "methods": [*DATA_DEPENDENT, {"name": "WT", "label": "WT + BN", "recalibrate": True}, "WT"],
        "spacing": [{"type": "manual", "values": [0.5]}],
    }
    assert main([str(write(small)), "-j", "1", "-q"]) == 1
    rows = table()
    (failed,) = rows[rows["status"] == "failed"].index
    assert failed == ("WT + BN", 0.5)
    assert "the network has no BatchNorm layer" in rows.loc[failed, "error"]
    assert not [*RESULTS.glob("cells/*/traceback.txt")], "every reason is a sentence of this program"


def test_clocks_that_go_backwards_decide_nothing(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock an hour earlier than the last; then files from the future, and from 1970."""
    path = str(write(small))
    hours: Iterator[int] = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))
    monkeypatch.setattr(time, "time_ns", lambda: 2 * 10**18 - 3600 * 10**9 * next(hours))
    assert main([path, "-j", "1", "-q"]) == 0
    rows, before = table(), [p.name for p in RESULTS.glob("cells/*")]
    assert (rows[["seconds_compress", "seconds_retrain"]].dropna() >= 0).all(axis=None)
    for history in RESULTS.glob("cells/*/history.csv"):
        assert (pd.read_csv(history)["seconds"] >= 0).all()
    for moment in (0, 4e9):
        for file in Path("data").rglob("*"):
            os.utime(file, (moment, moment))
        assert main([path, "-j", "1", "-q"]) == 0
        assert [p.name for p in RESULTS.glob("cells/*")] == before
        assert {p.stat().st_mtime for p in RESULTS.glob("cells/*/result.json")} == {moment}
        pd.testing.assert_frame_equal(table(), rows)
