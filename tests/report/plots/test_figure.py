"""What all figures share: axes that keep their width beside any legend, numbers that do not touch, single points."""

import itertools
from typing import Any

import pytest

from experiment.report import plot_cost, plot_tradeoff
from experiment.report.plots.curves import plain_ticks
from experiment.report.plots.figure import new_figure, place_legend


def panel_width(labels: list[str]) -> float:
    """Inches of the axes of a figure with these entries in its legend."""
    figure, (axes,) = new_figure(1)
    place_legend(figure, [(axes.plot([0, 1], [0, 1])[0], label) for label in labels])
    figure.draw_without_rendering()
    return float(axes.get_position().width * figure.get_figwidth())


def test_wide_legends_leave_the_axes_their_width() -> None:
    usual = panel_width(["ALDS", "WT", "Reference (uncompressed)"])
    assert panel_width([f"StructurePrune + SVD {place}" for place in range(17)]) > 0.95 * usual
    assert panel_width(["WT, distillation={temperature: 4, alpha: 1}"]) > 0.95 * usual


@pytest.mark.parametrize("width", [1.2, 2.0, 3.9, 8.0])
def test_numbers_at_ticks_do_not_touch_at_any_width(width: float) -> None:
    figure, (axes,) = new_figure(1, legend=False)
    figure.set_figwidth(width)
    axes.set_xscale("log")
    axes.set_xlim(100, 0.9)
    axes.set_xticks([100, 70, 50, 30, 20, 10, 7, 5, 3, 2, 1])
    plain_ticks(axes)
    figure.draw_without_rendering()
    shown = [label for label in axes.get_xticklabels() if label.get_text()]
    assert {"100", "10", "1"} <= {label.get_text() for label in shown} or width < 1.5
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert len(shown) == 11 or width < 8


def test_a_single_point_has_no_line_in_the_legend(synthetic: Any) -> None:
    rows = synthetic.grid(("WT",), nets=2, keeps=(0.5, 0.2))
    rows += [synthetic.cell_row("P(.1)", net, 0.1) | {"keep_target": ""} for net in (0, 1)]
    for figure in (plot_tradeoff(synthetic.frame(rows)), plot_cost(synthetic.frame(rows), "bytes_file")):
        legend: Any = figure.legends[0]
        names = [text.get_text() for text in legend.get_texts()]
        styles = {n: handle.get_linestyle() for n, handle in zip(names, legend.legend_handles, strict=True)}
        assert styles["P(.1)"] == "None"
        assert styles["WT"] != "None"
