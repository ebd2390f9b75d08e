"""What failed: cells, budgets and exported files, each with its reason."""

from pathlib import Path
from typing import Any

from experiment.report import read_source, write_report


def test_refused_files_are_among_what_failed(tmp_path: Path, synthetic: Any) -> None:
    rows = [synthetic.reference_row(0) | {"error_onnx": "", "error_openvino": ""}]
    for keep, error in ((0.5, "onnx: no operator Foo"), (0.1, "")):
        rows.append(synthetic.cell_row("FT", 0, keep, epochs=1) | {"error_onnx": error, "error_openvino": ""})
    folder = synthetic.write_experiment(tmp_path / "results" / "refused", rows)
    text = write_report(folder, []).markdown.read_text()
    section = text.partition("## What failed")[2].partition("##")[0]
    assert "| not exported | FT | 0.5 | 0 | onnx: no operator Foo |" in section
    assert section.count("not exported") == 1
    assert read_source(folder).results["status"].eq("done").all()
