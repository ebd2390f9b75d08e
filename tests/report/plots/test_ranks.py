"""Plots of effective ranks: what they draw, and the sentences below them, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from experiment.report.plots.label_styles import Naming
from experiment.report.plots.ranks import plot_rank_curves, plot_rank_keeps, plot_rank_training, shares_of
from experiment.report.words.ranks import keeps_seen, retraining_seen, training_seen


def rows(
    label: str, keep: float, layers: dict[str, list[float]], net: int = 0, full: int = 10
) -> list[dict[str, object]]:
    """Rows of ranks.csv: layer -> effective rank after every epoch."""
    return [
        {"label": label, "net": net, "repetition": 0, "keep_target": keep, "epoch": epoch, "layer": layer,
         "effective_rank": rank, "full_rank": full}
        for layer, values in layers.items() for epoch, rank in enumerate(values)
    ]  # fmt: skip


@pytest.fixture
def reference() -> pd.DataFrame:
    made = [*rows("Reference", 1.0, {"a": [8, 6], "b": [4, 4]}), *rows("Reference", 1.0, {"a": [6, 4], "b": [4, 4]}, 1)]
    frame = pd.DataFrame(made)
    return shares_of([frame], frame)


@pytest.fixture
def ranks(reference: pd.DataFrame) -> pd.DataFrame:
    made = [
        *rows("WT", 0.5, {"a": [6, 8], "b": [2, 4]}), *rows("WT", 0.1, {"a": [2, 3], "b": [2, 1]}),
        *rows("FT", 0.5, {"a": [5, 5], "b": [5, 5]}, full=5), *rows("FT", 0.1, {"a": [1, 1], "b": [1, 1]}, full=1),
    ]  # fmt: skip
    frame = pd.DataFrame(made)
    return shares_of([reference, frame], frame)


def test_shares_are_of_the_whole_layer(ranks: pd.DataFrame) -> None:
    assert list(ranks[ranks["label"] == "FT"]["share"]) == [0.5] * 4 + [0.1] * 4


def test_lost_ranks_are_left_out() -> None:
    frame = pd.DataFrame(rows("WT", 0.5, {"a": [math.nan, 3]}))
    assert list(shares_of([frame], frame)["share"]) == [0.3]
    assert shares_of([frame], pd.DataFrame()).empty


def test_training_has_a_line_a_layer_and_their_mean(reference: pd.DataFrame) -> None:
    figure = plot_rank_training(reference, "title")
    lines = [line.get_xydata().tolist() for line in figure.axes[0].get_lines()]
    assert lines == [[[0, 70], [1, 50]], [[0, 40], [1, 40]], [[0, 55], [1, 45]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean over layers", "a", "b"]
    assert training_seen(reference).endswith(
        "on average over layers it goes from 55.0 % to 45.0 %; the layer that changes most is a, from 70.0 % to 50.0 %."
    )


def test_many_layers_become_a_band() -> None:
    frame = pd.DataFrame(rows("Reference", 1.0, {f"layer{i}": [i / 10, i / 5] for i in range(40)}))
    axes = plot_rank_training(shares_of([frame], frame)).axes[0]
    assert len(axes.get_lines()) == len(axes.collections) == 1
    assert axes.get_lines()[0].get_ydata() == pytest.approx([19.5, 39])


def test_keep_ratios_have_a_line_a_label_and_the_reference(ranks: pd.DataFrame, reference: pd.DataFrame) -> None:
    naming = Naming({"WT": "Magnitude"})
    figure = plot_rank_keeps(ranks, reference, naming)
    wt, ft, whole = figure.axes[0].get_lines()
    assert wt.get_xydata() == pytest.approx(np.array([[50, 60], [10, 20]]))  # of the last epoch
    assert ft.get_xydata() == pytest.approx(np.array([[50, 50], [10, 10]]))
    assert list(whole.get_ydata()) == pytest.approx([45, 45])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Magnitude", "FT", "Reference (uncompressed)"]
    assert keeps_seen(ranks, reference, naming).endswith(
        "Magnitude 20.0 % at keep ratio 0.1, FT 10.0 % at keep ratio 0.1; the uncompressed networks have 45.0 %."
    )
    assert keeps_seen(ranks, reference[:0], naming).endswith("FT 10.0 % at keep ratio 0.1.")


def test_methods_with_a_density_of_their_own_do_no_harm(reference: pd.DataFrame) -> None:
    frame = pd.DataFrame([*rows("WT", math.nan, {"a": [5]}), *rows("FT", 0.1, {"a": [5]})])
    own = shares_of([reference, frame], frame)
    plot_rank_keeps(own, reference, Naming())
    plot_rank_keeps(own[own["label"] == "WT"], reference, Naming())
    assert "WT 50.0 % at keep ratio –" in keeps_seen(own, reference, Naming())  # noqa: RUF001


def test_retraining_has_a_panel_a_label_and_a_line_a_keep_ratio(ranks: pd.DataFrame) -> None:
    figure = plot_rank_curves(ranks, Naming())
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["WT", "FT"]
    assert [line.get_ydata().tolist() for line in panels[0].get_lines()] == [
        pytest.approx([40, 60]),
        pytest.approx([20, 20]),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0.5", "0.1"]
    assert retraining_seen(ranks, Naming()).endswith("it changes by WT +10.0, FT 0.0 percentage points.")
