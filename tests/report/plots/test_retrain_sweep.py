"""Prune potential against the amount of retraining."""

from typing import Any

import pytest

from experiment.errors import ConfigError
from experiment.report import is_retrain_sweep, plot_retrain_sweep, prune_potential, retrain_sweep


def test_shares_of_retraining_and_potentials(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.sweep(("ALDS", "SVD"), nets=2))
    found = retrain_sweep(results, 182, deltas=(0.01,))
    assert list(found["label"].unique()) == ["ALDS", "SVD"]  # grid order
    own = found[found["label"] == "SVD"]
    assert list(own["retraining"]) == pytest.approx([0, 4 / 182, 18 / 182, 45 / 182, 0.5, 1])
    one = results[results["variant"] == "retraining.startEpoch=91"]
    expected = prune_potential(one, 0.01, per="net").set_index("label").loc["SVD", "removed"]
    assert own["removed"].iloc[4] == pytest.approx(expected)


def test_the_picture_has_a_place_for_no_retraining(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.sweep(("ALDS", "SVD"), nets=2))
    figure = plot_retrain_sweep(results, 182, deltas=(0.0, 0.01))
    assert len(figure.axes) == 2
    figure.draw_without_rendering()
    for axes in figure.axes:
        left, right = axes.get_xlim()
        places = axes.transData.transform([(left, 0), (0, 0), (100 * 4 / 182, 0), (100, 0), (right, 0)])[:, 0]
        assert list(places) == sorted(places)
        gaps = [places[2] - places[1], places[3] - places[2]]
        assert min(gaps) > 0.1 * (places[-1] - places[0])  # 0 stands apart from the smallest amount
        assert axes.get_ylim() == (0, 100)
    assert figure.legends[0].get_window_extent().x0 > max(axes.get_tightbbox().x1 for axes in figure.axes)


def test_sweeps_over_the_number_of_epochs_count_too(synthetic: Any) -> None:
    rows = [
        row
        for epochs in (0, 5)
        for row in synthetic.grid(("ALDS",), 1, (0.5,), epochs, f"retraining.numEpochs={epochs}")
    ]
    assert is_retrain_sweep(synthetic.frame(rows))
    assert list(retrain_sweep(synthetic.frame(rows), 10, (0.01,))["retraining"]) == pytest.approx([0, 0.5])


def test_other_experiments_are_refused(synthetic: Any) -> None:
    plain = synthetic.frame(synthetic.grid(("ALDS",), nets=1))
    other = synthetic.frame(synthetic.sweep(("ALDS",), nets=1, setting="training.batchSize"))
    for results in (plain, other):
        assert not is_retrain_sweep(results)
        with pytest.raises(ConfigError, match=r"retraining.startEpoch or retraining.numEpochs"):
            retrain_sweep(results, 182)
    with pytest.raises(ConfigError, match=r"training_epochs: must be at least 1"):
        retrain_sweep(synthetic.frame(synthetic.sweep(("ALDS",), nets=1)), 0)
