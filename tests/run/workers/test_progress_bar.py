"""What a log file is told while work runs, and on which stream."""

from typing import Any

import pytest

from experiment.run.cell.events import Busy, CellDone, Note, Started
from experiment.run.workers import progress_bar


def test_results_and_notes_have_streams_of_their_own(capsys: Any) -> None:
    seen = progress_bar.ProgressBar(4, 4, 0)
    seen.show(CellDone("a", "WT keep 0.5 net 0", "done", "top-1 90.00%", 0.5, None))
    seen.show(CellDone("b", "WT keep 0.1 net 0", "infeasible", None, None, "too small"))
    seen.show(CellDone("c", "FT keep 0.5 net 0", "failed", None, None, "no\nmemory"))
    seen.show(Note("a note"))
    out, err = (text.splitlines() for text in capsys.readouterr())
    assert out == [
        "[1/4] WT keep 0.5 net 0: top-1 90.00%, 50.0% of the parameters",
        "[2/4] WT keep 0.1 net 0: infeasible: too small",
    ]
    assert err == ["[3/4] FT keep 0.5 net 0: FAILED: no\\nmemory", "a note"]


@pytest.mark.parametrize(("verbosity", "told"), [(-1, []), (0, [30, 90, 210, 330])])
def test_a_log_file_is_told_of_long_analyses_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, verbosity: int, told: list[int]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now)
    seen = progress_bar.ProgressBar(4, 4, verbosity)
    for second in range(340):
        now = float(second)
        if second == 300:
            seen.show(Started("ALDS net 0", 1.0))
        seen.show(Busy("ALDS net 0", f"ALDS: analysis {second}"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"ALDS net 0: ALDS: analysis {second}" for second in told]
