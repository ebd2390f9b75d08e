"""Heat maps of layers' budgets and curves of training: what they show is what the files say."""

import math

import numpy as np
import pandas as pd
import pytest

from experiment.report import LabelStyles
from experiment.report.plots.history import plot_retraining, plot_training
from experiment.report.plots.layers import heat_maps, plot_layers, typical_keeps


def test_typical_keeps_span_the_grid() -> None:
    grid = [0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
    assert typical_keeps(grid) == [0.8, 0.2, 0.02]
    assert typical_keeps(grid, 1) == [0.2]
    assert typical_keeps([0.5, math.nan, 0.8, 0.5]) == [0.8, 0.5]
    assert typical_keeps([]) == []


def test_fields_are_mean_shares_in_the_networks_order() -> None:
    rows = [
        {"label": label, "net": net, "keep_target": 0.5, "layer": layer, "parameters_before": 100, "parameters": kept}
        for label, net, layer, kept in (
            ("ALDS", 0, "conv10", 40), ("ALDS", 1, "conv10", 60), ("ALDS", 0, "conv2", 8), ("ALDS", 1, "conv2", 8),
            ("FT", 0, "conv10", 0),
        )
    ]  # fmt: skip
    figure = plot_layers(pd.DataFrame(rows), LabelStyles())
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv10", "conv2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ALDS", "FT"]
    assert [text.get_text() for text in axes.texts] == ["50", "0.0", "8.0", "–"]  # noqa: RUF001
    shares = axes.images[0].get_array()
    assert shares[0, 0] == pytest.approx(0.5)
    assert np.ma.getmaskarray(shares)[1, 1]
    assert axes.get_title() == "keep ratio 0.5"


def test_heat_maps_of_all_keep_ratios_are_data() -> None:
    rows = [
        {"label": label, "net": net, "keep_target": keep, "layer": layer, "parameters_before": 300, "parameters": kept}
        for label, keep, net, layer, kept in (
            ("WT", 0.5, 0, "b", 100), ("WT", 0.5, 1, "b", 200), ("WT", 0.5, 0, "a", 1), ("FT", 0.5, 0, "a", 300),
            ("WT", 0.2, 0, "a", 30), ("WT", 0.1, 0, "a", 3), ("WT", 0.05, 0, "a", 0), ("P", math.nan, 0, "a", 150),
        )
    ]  # fmt: skip
    found = heat_maps(pd.DataFrame(rows), LabelStyles({"WT": "Magnitude", "FT": "$x$"}))
    assert found["layers"] == ["b", "a"]
    titles = [f"keep ratio {keep}" for keep in (0.5, 0.2, 0.1, 0.05)]
    assert [each["title"] for each in found["maps"]] == [*titles, "size set by the method"]
    assert found["maps"][0] == {
        "title": "keep ratio 0.5", "labels": ["Magnitude", "FT"], "kept": [[50.0, None], [0.3, 100.0]]
    }  # fmt: skip
    assert found["maps"][4] == {"title": "size set by the method", "labels": ["P"], "kept": [[None], [50.0]]}
    assert (found["colors"][0], found["smallest"]) == ("#00224e", 1.0)


def test_large_networks_get_no_numbers_and_methods_with_a_density_of_their_own_get_a_panel() -> None:
    rows = [
        {"label": f"m{m}", "keep_target": math.nan, "layer": f"layer{i}", "parameters_before": 10, "parameters": 5}
        for m in range(3) for i in range(100)
    ]  # fmt: skip
    axes = plot_layers(pd.DataFrame(rows), LabelStyles()).axes[0]
    assert not axes.texts
    assert axes.get_title() == "size set by the method"
    assert len(axes.get_yticks()) <= 50


def test_methods_with_and_without_a_keep_ratio_stand_in_panels_of_their_own() -> None:
    rows = [
        {"label": label, "keep_target": keep, "layer": layer, "parameters_before": 100, "parameters": kept}
        for label, keep, kept in (("WT", 0.5, 50), ("P(.1)", math.nan, 10), ("WT", 0.2, 20), ("int8", math.nan, 100))
        for layer in ("conv", "fc")
    ]  # fmt: skip
    *given, own = [axes for axes in plot_layers(pd.DataFrame(rows), LabelStyles()).axes if axes.texts]
    assert [axes.get_title() for axes in given] == ["keep ratio 0.5", "keep ratio 0.2"]
    for axes, share in zip(given, ("50", "20"), strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["WT"]
        assert [text.get_text() for text in axes.texts] == [share, share]
    assert own.get_title() == "size set by the method"
    assert [label.get_text() for label in own.get_xticklabels()] == ["P(.1)", "int8"]
    assert [text.get_text() for text in own.texts] == ["10", "100", "10", "100"]


def test_training_curves_are_means_after_every_epoch() -> None:
    history = pd.DataFrame(
        {"net": [0, 0, 1, 1], "epoch": [0, 1, 0, 1], "loss": [2.0, 1.0, 4.0, 3.0], "valid_loss": [np.nan] * 4,
         "top1": [0.1, 0.5, 0.3, 0.7], "valid_top1": [0.2, 0.4, 0.2, 0.6]}
    )  # fmt: skip
    figure = plot_training(history)
    (loss,), (train, valid) = (axes.get_lines() for axes in figure.axes)
    assert loss.get_xydata().tolist() == [[1, 3], [2, 2]]
    assert train.get_ydata() == pytest.approx([20, 60])
    assert valid.get_ydata() == pytest.approx([20, 50])
    assert "largest of 2 networks" in figure.legends[0].get_title().get_text()


def test_retraining_has_a_panel_a_label_and_a_line_a_keep_ratio() -> None:
    history = pd.DataFrame(
        [
            {"label": label, "net": net, "keep_target": keep, "epoch": epoch,
             "valid_top1": 0.1 * epoch + 0.02 * net + keep}
            for label in ("A", "B", "C") for net in (0, 1) for keep in (0.5, 0.2) for epoch in range(3)
        ]
    )  # fmt: skip
    figure = plot_retraining(history, LabelStyles({"A": "First"}))
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["First", "B", "C"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0.5", "0.2"]
    for axes in figure.axes[:3]:
        low, high = axes.get_lines()
        assert low.get_ydata() == pytest.approx([21, 31, 41])
        assert high.get_ydata() == pytest.approx([51, 61, 71])
