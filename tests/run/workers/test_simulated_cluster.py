"""Workers that are killed, on a file system whose answers are old: every cell is computed, and none of them twice."""

from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_no_cell_is_lost_or_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers want each of the cells, and neither sees at once what the other has stored."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmark")
    from simulated_cluster import Cluster, simulate

    found = simulate(Cluster(workers=8, cells=120, kills=5, seconds=0.01, latency=0.0, stale=0.5), tmp_path)
    assert not found.faults
    assert found.killed
    assert found.cells <= found.started <= found.cells + found.killed
