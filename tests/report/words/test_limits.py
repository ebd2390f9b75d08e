"""The table of limits: which quantities it shows, in which units, and where there is none."""

from pathlib import Path
from typing import Any

from experiment.report import LabelStyles, read_source, write_report
from experiment.report.words.limits import limited_quantities


def test_limits_stand_beside_what_networks_take(tmp_path: Path, synthetic: Any) -> None:
    own = {"limit_bytes": 400e3, "predicted_bytes": 390e3, "measured_bytes": 390e3}
    time = {"limit_latency": 12.0, "predicted_latency": 11.5}
    rows = [synthetic.reference_row(0) | dict.fromkeys([*own, *time, "measured_latency"], "")]
    for net, latency in ((0, 11.0), (1, 12.0)):
        rows.append(synthetic.cell_row("FT", net, 0.5, epochs=1) | own | time | {"measured_latency": latency})
    folder = synthetic.write_experiment(tmp_path / "results" / "limits", rows)
    text = write_report(folder, []).markdown.read_text()
    section = text.partition("## Limits")[2].partition("##")[0]
    assert (
        "| Method | Keep ratio | Bytes (kB), limit | Bytes (kB) | Latency (ms), limit | Latency (ms), predicted | "
        "Latency (ms) |"
    ) in section
    assert "| FT | 0.5 | 400.0 | 390.0 | 12 | 11.5 | 11.5 |" in section


def test_there_is_no_table_without_other_limits(tmp_path: Path, synthetic: Any) -> None:
    rows = [synthetic.reference_row(0), synthetic.cell_row("FT", 0, 0.5, epochs=1)]
    source = read_source(synthetic.write_experiment(tmp_path / "results" / "plain", rows))
    assert limited_quantities(source, LabelStyles()) is None
