"""The section on tuned retraining: chosen values, spreads, and lists that are too short."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.report import LabelStyles, read_source, write_report
from experiment.report.words import numbers
from experiment.report.words.tuning import tuned_retraining

LR = "optimizerKwargs.lr"
FIGURES = {  # label, net, keep -> validation figure of every rate
    ("WT", 0, 0.5): (0.97, 0.98, 0.90),
    ("WT", 1, 0.5): (0.98, 0.97, 0.94),
    ("WT", 0, 0.1): (0.80, 0.90, None),
    ("WT", 1, 0.1): (0.80, 0.86, 0.70),
    ("WT", 0, 0.05): (None, 0.80, None),
    ("WT", 1, 0.05): (None, 0.70, None),
    ("SVD", 0, 0.5): (0.90, 0.85, 0.95),
    ("SVD", 1, 0.5): (0.90, 0.85, 0.91),
}
RATES = (0.1, 0.03, 0.01)


@pytest.fixture
def folder(tmp_path: Path, synthetic: Any) -> Path:
    """Results of two methods and two networks, whose trials have the figures above."""
    rows = [synthetic.reference_row(net) | {"tuned": "", "seconds_tune": ""} for net in range(2)]
    for label, net, keep in FIGURES:
        rows.append(synthetic.cell_row(label, net, keep, epochs=1) | {"tuned": "some", "seconds_tune": 20.0})
    retraining = {"startEpoch": 181, "tune": {LR: list(RATES), "loss": ["CrossEntropyLoss", "NLLLoss"]}}
    place: Path = synthetic.write_experiment(
        tmp_path / "results" / "tuned", rows, cells=True, parameters={"retraining": retraining}
    )
    for (label, net, keep), figures in FIGURES.items():
        (cell,) = (place / "cells").glob(f"*-{synthetic.key(label, net, 0, keep, '')}")
        best = max(range(3), key=lambda i: figures[i] or 0)
        trials = [
            {LR: rate, "loss": "NLLLoss", "valid_top1": figure, "chosen": i == best}
            for i, (rate, figure) in enumerate(zip(RATES, figures, strict=True))
        ]
        pd.DataFrame(trials).to_csv(cell / "trials.csv", index=False)
    return place


def test_values_spreads_and_ends_of_lists(folder: Path) -> None:
    text = write_report(folder, []).markdown.read_text()
    section = text.partition("## Tuned retraining")[2].partition("##")[0]
    assert "| Method | Keep ratio | loss | optimizerKwargs.lr | Spread of top-1 accuracy (points) |" in section
    assert "| WT | 0.5 | NLLLoss | 0.03 (1), 0.1 (1) | 6.00 |" in section  # of 8 and 4
    assert "| WT | 0.1 | NLLLoss | 0.03 | 13.00 |" in section  # of 10, without the trial that diverged, and 16
    assert "| SVD | 0.5 | NLLLoss | 0.01 | 8.00 |" in section
    assert f"| WT | 0.05 | NLLLoss | 0.03 | {numbers.MISSING} |" in section  # one trial has no spread
    assert "5 of 24 trials of these networks diverged." in section
    assert "3 min went into trials that were not kept." in section
    assert (
        "optimizerKwargs.lr: 1 of 8 networks chose the largest value of the list, 0.1 (WT). Extend the list above it."
    ) in section
    assert "2 of 8 networks chose the smallest value of the list, 0.01 (SVD). Extend the list below it." in section
    assert "**Computing time**: 4 min for compression" in text  # 8 cells of 0.8 + 10 + 20 seconds


def test_without_divergence_none_is_told(folder: Path) -> None:
    for path in folder.glob("cells/*/trials.csv"):
        trials = pd.read_csv(path)
        trials.fillna({"valid_top1": 0.5}).to_csv(path, index=False)
    section = tuned_retraining(read_source(folder), LabelStyles())
    assert section is not None
    assert not any("trials of these networks diverged" in getattr(block, "text", "") for block in section.blocks)


def test_there_is_no_section_where_nothing_was_tuned(tmp_path: Path, synthetic: Any) -> None:
    rows = [synthetic.reference_row(0), synthetic.cell_row("FT", 0, 0.5, epochs=1)]
    source = read_source(synthetic.write_experiment(tmp_path / "results" / "plain", rows))
    assert tuned_retraining(source, LabelStyles()) is None


def test_there_is_none_before_the_first_cell_and_without_trials(folder: Path) -> None:
    for path in folder.glob("cells/*/trials.csv"):
        path.unlink()
    assert tuned_retraining(read_source(folder), LabelStyles()) is None
    table = folder / "results.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    assert tuned_retraining(read_source(folder), LabelStyles()) is None
