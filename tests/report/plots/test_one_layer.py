"""Accuracy against the rank of one layer: which experiments have such a plot, and that it shows what the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiment.report import read_source, write_report
from experiment.report.plots.label_styles import Naming
from experiment.report.plots.one_layer import (
    one_layer_reference,
    one_layer_seen,
    plot_one_layer,
    ranks_of_one_layer,
)

VARIANTS = ("experiments.rewind=none", "experiments.rewind=random")
RANKS = {0.6: 100, 0.5: 20, 0.45: 5}
TOP1 = {100: 0.9, 20: 0.898, 5: 0.6}


def written(
    synthetic: Any, folder: Path, layers: tuple[str, ...] = ("fc2",), variants: tuple[str, ...] = ("",)
) -> Path:
    """SVD and RSVD of two networks, factoring these layers; with random weights they lose a point more."""
    rows = []
    for variant in variants:
        for row in synthetic.grid(("SVD", "RSVD"), nets=2, keeps=tuple(RANKS), variant=variant):
            if row["method"] == "Reference":
                row |= {"top1": 0.9, "cell": synthetic.key("shared", row["net"])}
            else:
                row["top1"] = TOP1[RANKS[row["keep_target"]]] + (row["net"] - 0.5) / 100
                row["top1"] -= 0.01 if variant.endswith("random") else 0
            rows.append(row)
    synthetic.write_experiment(folder, rows)
    for row in rows:
        place = folder / "cells" / f"{row['label']}-n{row['net']}-{row['cell']}"
        if row["method"] != "Reference":
            rank = RANKS[row["keep_target"]]
            table = [{"layer": name, "parameters_before": 10, "parameters": 5, "rank": "", "relative_error": 0,
                      "relative_error_exact": 0} for name in ("fc1", "fc2", "fc3")]  # fmt: skip
            for entry in table:
                if entry["layer"] in layers:
                    error = 1 / rank
                    entry |= {"rank": rank, "relative_error_exact": error,
                              "relative_error": error * (9 if row["label"] == "RSVD" else 1)}  # fmt: skip
            place.mkdir(parents=True)
            pd.DataFrame(table).to_csv(place / "layers.csv", index=False)
    return folder


def test_curves_are_mean_accuracies_and_errors_over_the_rank(synthetic: Any, tmp_path: Path) -> None:
    source = read_source(written(synthetic, tmp_path / "one"))
    cells, reference = ranks_of_one_layer(source), one_layer_reference(source)
    assert len(cells) == 12
    figure = plot_one_layer(cells, reference, Naming({"RSVD": "randomised"}))
    accuracy, errors = figure.axes
    svd, rsvd, whole = accuracy.get_lines()
    for line in (svd, rsvd):
        assert line.get_xydata() == pytest.approx(np.array([[5, 60], [20, 89.8], [100, 90]]))
    assert list(whole.get_ydata()) == pytest.approx([90, 90])
    drawn = [line.get_ydata() for line in errors.get_lines()]
    assert drawn == [pytest.approx([0.2, 0.05, 0.01])] * 2 + [pytest.approx([1.8, 0.45, 0.09])]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["SVD", "randomised", "randomised: its bound of the error", "Reference (uncompressed)"]
    assert "rank of fc2" in one_layer_seen(cells, reference, Naming())
    assert one_layer_seen(cells, reference, Naming()).endswith("SVD 20 (89.80 %), RSVD 20 (89.80 %).")


def test_variants_share_the_picture_and_errors_are_drawn_once(synthetic: Any, tmp_path: Path) -> None:
    source = read_source(written(synthetic, tmp_path / "two", variants=VARIANTS))
    cells, reference = ranks_of_one_layer(source), one_layer_reference(source)
    assert len(reference) == 2
    figure = plot_one_layer(cells, reference, Naming())
    assert len(figure.axes[0].get_lines()) == 5
    assert len(figure.axes[1].get_lines()) == 3
    assert figure.axes[0].get_lines()[2].get_ydata() == pytest.approx([59, 88.8, 89])
    text = one_layer_seen(cells, reference, Naming())
    assert "SVD, kept weights 20 (89.80 %)" in text
    assert "SVD, trained from scratch none" in text


def test_an_experiment_on_several_layers_has_no_such_plot(synthetic: Any, tmp_path: Path) -> None:
    several = read_source(written(synthetic, tmp_path / "several", layers=("fc1", "fc2")))
    assert ranks_of_one_layer(several).empty
    without = tmp_path / "without"
    synthetic.write_experiment(without, synthetic.grid(("WT",), nets=1), cells=True)
    assert ranks_of_one_layer(read_source(without)).empty


def test_it_is_part_of_the_report(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.report.plots.gallery._wanted", lambda *_, **__: iter(()))  # trade-offs take long
    folder = written(synthetic, tmp_path / "one")
    write_report(folder)
    assert (folder / "plots/onelayer.png").stat().st_size > 10_000
    assert "plots/onelayer.png" in (folder / "report.md").read_text()
