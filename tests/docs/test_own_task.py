"""The task of one's own in the docs: its code and its parameter file, run as they are."""

import itertools
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from experiment.main import main
from experiment.report.plots import gallery

PAGE = Path(__file__).parents[2] / "docs" / "own.md"


def test_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    section = PAGE.read_text().partition("### The task")[2].partition("\n### ")[0]
    code, file = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)[1] for kind in ("python", "yaml"))
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    (tmp_path / "my_task.py").write_text(code)
    (tmp_path / "my_digits.yaml").write_text(file)
    monkeypatch.setattr(gallery, "GALLERY", (lambda *of: itertools.islice(gallery.tradeoffs(*of), 1),))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["my_digits.yaml", "-j", "1", "-q"]) == 0
    folder = tmp_path / "data/results/my_digits"
    table = pd.read_csv(folder / "results.csv")
    assert list(table["method"]) == ["Reference", "WT", "WT", "SVD", "SVD"]
    assert set(table["status"]) == {"done"}
    assert set(table["primary"]) == {"cost_accuracy"}
    assert table["cost_accuracy"].max() > 0.9
    assert table["cost_accuracy"].equals(table["cost_accuracy"].clip(0, 1))
    assert (folder / "plots" / "tradeoff-cost_accuracy-parameters.png").is_file()
    assert "loss of cost accuracy" in (folder / "report.md").read_text()

    def states() -> set[str]:
        capsys.readouterr()
        assert main(["my_digits.yaml", "--plan=json"]) == 0
        return {json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()}

    assert states() == {"done"}
    (tmp_path / "my_task.py").write_text(code.replace("5.0", "6.0"))
    assert states() == {"pending"}
