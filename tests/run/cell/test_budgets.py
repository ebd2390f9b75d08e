"""Budgets of bytes and memory in the runner: met, reported, infeasible; other budgets have other keys."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.main import main

RESULTS = Path("data/results/small")


@pytest.mark.usefixtures("no_plots")
def test_limits_are_met_and_reported(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["experiments"] |= {"methods": ["WT", "FT", "SVD"], "budget": {"bytes": 0.2, "memory": 0.5}}
    del small["experiments"]["spacing"]
    path = write(small)
    assert main([str(path), "-j", "1", "-q"]) == 0
    frame = pd.read_csv(in_tmp / RESULTS / "results.csv").set_index("label")
    assert frame.loc["WT", "status"] == "infeasible"
    assert "Masked weights take the same time and memory" in frame.loc["WT", "error"]
    whole = frame.loc["Reference", "bytes_dense"]
    for label in ("FT", "SVD"):
        row = frame.loc[label]
        assert row["status"] == "done"
        assert row["measured_bytes"] == row["predicted_bytes"] == row["bytes_sparse"] <= row["limit_bytes"]
        assert row["limit_bytes"] == pytest.approx(0.2 * whole)
        assert 0.9 * row["limit_bytes"] < row["measured_bytes"]
        assert row["measured_memory"] <= row["limit_memory"]
    keys = set(frame["cell"])
    assert main([str(path), "-j", "1", "-q", "--set", "experiments.budget={bytes: 0.1}"]) == 0
    (other,) = in_tmp.glob("data/results/small@*")
    smaller = pd.read_csv(other / "results.csv").set_index("label")
    assert set(smaller["status"]) == {"done"}
    assert keys & set(smaller["cell"]) == {frame.loc["Reference", "cell"]}
