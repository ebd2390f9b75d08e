"""The plot of effective ranks against keep ratios, with numbers worked out by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiment.report import LabelStyles, read_source
from experiment.report.plots.effective_rank import plot_effective_rank, with_shares
from experiment.report.plots.gallery import effective_ranks


def rows(
    label: str, keep: float, layers: dict[str, list[float]], net: int = 0, full: int = 10
) -> list[dict[str, object]]:
    """Rows of ranks.csv: layer -> effective rank after every epoch."""
    return [
        {"label": label, "net": net, "repetition": 0, "keep_target": keep, "epoch": epoch, "layer": layer,
         "effective_rank": rank, "full_rank": full}
        for layer, values in layers.items() for epoch, rank in enumerate(values)
    ]  # fmt: skip


RANKS = [
    *rows("Reference", 1.0, {"a": [8, 6], "b": [4, 4]}), *rows("Reference", 1.0, {"a": [6, 4], "b": [4, 4]}, 1),
    *rows("WT", 0.5, {"a": [6, 8], "b": [2, 4]}), *rows("WT", 0.1, {"a": [2, 3], "b": [2, 1]}),
    *rows("FT", 0.5, {"a": [5, 5], "b": [5, 5]}, full=5), *rows("FT", 0.1, {"a": [1, 1], "b": [1, 1]}, full=1),
    *rows("Own", math.nan, {"a": [5]}),
]  # fmt: skip


def test_shares_are_of_the_whole_layer_and_lost_ranks_are_left_out() -> None:
    ranks = with_shares(pd.DataFrame([*RANKS, *rows("Lost", 0.5, {"a": [math.nan]})]))
    assert list(ranks[ranks["label"] == "FT"]["share"]) == [0.5] * 4 + [0.1] * 4
    assert "Lost" not in set(ranks["label"])


def test_curves_are_means_over_layers_after_the_last_epoch() -> None:
    figure = plot_effective_rank(with_shares(pd.DataFrame(RANKS)), LabelStyles({"WT": "Magnitude"}))
    wt, ft, whole = figure.axes[0].get_lines()
    assert wt.get_xydata() == pytest.approx(np.array([[50, 60], [10, 20]]))
    assert ft.get_xydata() == pytest.approx(np.array([[50, 50], [10, 10]]))
    assert list(whole.get_ydata()) == pytest.approx([45, 45])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Magnitude", "FT", "Reference (uncompressed)"]


def test_only_experiments_that_measured_ranks_have_the_plot(synthetic: Any, tmp_path: Path) -> None:
    table = synthetic.grid(("WT",), nets=1, keeps=(0.5,))
    source = read_source(synthetic.write_experiment(tmp_path, table, cells=True))
    assert not list(effective_ranks(source, LabelStyles()))
    for row in table:
        place = tmp_path / "cells" / f"{row['label']}-n0-{row['cell']}"
        ranks = pd.DataFrame(rows("", 1, {"a": [3]}))
        ranks[["epoch", "layer", "effective_rank", "full_rank"]].to_csv(place / "ranks.csv", index=False)
    (plot,) = effective_ranks(source, LabelStyles())
    assert plot.draw().axes[0].get_lines()[0].get_xydata() == pytest.approx(np.array([[50, 30]]))
