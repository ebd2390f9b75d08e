"""The trade-off picture: its curves, bands and limits are the data's, and nothing lies over a curve."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiment.errors import ConfigError
from experiment.report import LabelStyles, plot_tradeoff
from experiment.report.label_styles import COLORS
from experiment.report.plots.figure import save_figure


def curves(figure: Figure, panel: int = 0) -> dict[str, Any]:
    """Legend text -> line of a panel."""
    legend = figure.legends[0]
    pairs = zip(legend.get_lines(), legend.get_texts(), strict=True)
    names = {(line.get_color(), line.get_marker()): text.get_text() for line, text in pairs}
    return {names[line.get_color(), line.get_marker()]: line for line in figure.axes[panel].get_lines()}


def test_lines_are_means_and_bands_are_standard_deviations(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.grid(("ALDS", "SVD"), nets=3, keeps=(0.5, 0.2)))
    figure = plot_tradeoff(results)
    own = results[results["label"] == "ALDS"]
    for place, keep in enumerate((0.5, 0.2)):
        cells = own[own["keep_target"] == keep]
        x, y = curves(figure)["ALDS"].get_xydata()[place]
        assert x == pytest.approx(100 * (1 - np.mean(cells["keep_parameters"])))
        assert y == pytest.approx(100 * np.mean(cells["top1"]))
        std = 100 * np.std(cells["top1"], ddof=1)
        edges = [v[1] for v in figure.axes[0].collections[0].get_paths()[0].vertices if v[0] == pytest.approx(x)]
        assert min(edges) == pytest.approx(y - std)
        assert max(edges) == pytest.approx(y + std)
    reference = curves(figure)["Reference (uncompressed)"].get_ydata()[0]
    assert reference == pytest.approx(100 * np.mean(results[results["label"] == "Reference"]["top1"]))


@pytest.mark.parametrize("methods", [2, 14])
def test_the_legend_covers_no_panel_and_lies_inside_the_figure(synthetic: Any, methods: int) -> None:
    results = synthetic.frame(synthetic.grid(synthetic.MANY[:methods], nets=2))
    figure = plot_tradeoff(results, note="one-shot, " + "a long note " * 8)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    title = figure._suptitle.get_window_extent()
    for axes in figure.axes:
        panel = axes.get_tightbbox()
        assert legend.x0 > panel.x1
        assert title.y0 > axes.get_window_extent().y1
    assert legend.x1 <= figure.bbox.x1 + 1
    assert legend.y1 <= figure.bbox.y1 + 1
    assert title.x1 < legend.x0 or title.y0 > legend.y1


def test_axes_are_labelled_with_units_and_limits_come_from_keep_ratios(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.grid(nets=1))
    axes = plot_tradeoff(results, "flops", keep_limits=(0.1, 0.7)).axes[0]
    assert axes.get_xlabel() == "FLOPs removed (%)"
    assert axes.get_ylabel() == "Top-1 test accuracy (%)"
    assert axes.get_xlim() == pytest.approx((29, 90))
    axes = plot_tradeoff(results, scale="log", keep_limits=(0.02, 1.0)).axes[0]
    assert axes.get_xlabel() == "Parameters kept (%), logarithmic"
    assert axes.get_xlim() == pytest.approx((100, 2))  # less is kept to the right, as more is removed


def test_known_labels_keep_their_looks_and_all_looks_differ(synthetic: Any) -> None:
    few = curves(plot_tradeoff(synthetic.frame(synthetic.grid(("ALDS", "SVD"), nets=1))))
    labels = [*synthetic.MANY, *(f"mine {i}" for i in range(12))]
    many = plot_tradeoff(synthetic.frame(synthetic.grid(labels, nets=1, keeps=(0.5, 0.2))))
    lines = curves(many)
    for label in ("ALDS", "SVD"):
        assert few[label].get_color() == lines[label].get_color()
        assert few[label].get_marker() == lines[label].get_marker()
    looks = {(line.get_color(), line.get_marker()) for line in lines.values()}
    assert len(looks) == len(labels) + 1
    assert {line.get_color() for name, line in lines.items() if name != "Reference (uncompressed)"} <= set(COLORS)


def test_names_and_colours_of_the_parameter_file(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.grid(("ALDS", "SVD"), nets=1))
    names, colors = {"ALDSNet": "Ours", "SVD": "$\\ell_2$"}, {"ALDS": "red", "SVDNet": "no such colour"}
    figure = plot_tradeoff(results, styles=LabelStyles(names, colors))
    lines = curves(figure)
    assert lines["Ours"].get_color() == "red"
    assert lines["$\\ell_2$"].get_color() in COLORS
    broken = plot_tradeoff(results, styles=LabelStyles({"SVD": "$\\nothing{$ and _x"}))
    broken.savefig(io.BytesIO(), format="png")  # mathematics that matplotlib cannot read is drawn as text


def test_what_is_not_drawn_is_said(synthetic: Any) -> None:
    rows = [*synthetic.grid(("ALDS", "WT"), nets=2), synthetic.broken_row("FT", 0, 0.5, "failed", "no")]
    figure = plot_tradeoff(synthetic.frame(rows), "flops")
    assert "WT" not in curves(figure)  # a mask removes no FLOPs
    text = figure._supxlabel.get_text()
    assert "removes no FLOPs: WT" in text
    assert "No finished cell: FT" in text
    assert "fewer networks" not in text
    rows = synthetic.grid(("ALDS",), nets=2)[:-1]
    assert "fewer networks" in plot_tradeoff(synthetic.frame(rows))._supxlabel.get_text()
    unmasked = plot_tradeoff(synthetic.frame(synthetic.grid(("WT",), nets=1)), "flops_unmasked")
    assert "WT" in curves(unmasked)


def test_loss_and_collapse_are_readable(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.grid(nets=1))
    assert len(plot_tradeoff(results).axes) == 2  # accuracy falls to 10 %: a close-up is added
    assert len(plot_tradeoff(results, metric="loss").axes) == 1
    close = plot_tradeoff(results).axes[1]
    reference = 100 * results[results["label"] == "Reference"]["top1"].iloc[0]
    assert close.get_ylim()[0] == pytest.approx(reference - 5)
    assert close.get_ylim()[1] >= reference


def test_other_metrics_beside_top1(synthetic: Any) -> None:
    """Further metrics of a task whose first is top1; flips, of which the reference has no figure to zoom in on."""
    rows = [row | {"mcc": row["top1"], "flips": "" if row["method"] == "Reference" else 1 - row["top1"]}
            for row in synthetic.grid(nets=1)]  # fmt: skip
    assert plot_tradeoff(synthetic.frame(rows), metric="mcc").axes[0].get_ylabel() == "Matthews correlation (%)"
    assert len(plot_tradeoff(synthetic.frame(rows), metric="flips").axes) == 1


def test_nothing_finished_gives_an_empty_picture(synthetic: Any) -> None:
    for rows in ([synthetic.reference_row(0)], [synthetic.broken_row("FT", 0, 0.5, "failed", "no")]):
        figure = plot_tradeoff(synthetic.frame(rows))
        assert any("nothing to draw" in text.get_text() for text in figure.axes[0].texts)
        figure.savefig(io.BytesIO(), format="png")


def test_several_variants_or_networks_must_be_chosen_from(synthetic: Any) -> None:
    sweep = synthetic.frame(synthetic.sweep(("ALDS",), nets=1))
    with pytest.raises(ConfigError, match=r"6 variants. Select one of 'retraining.startEpoch=0'"):
        plot_tradeoff(sweep)
    with pytest.raises(ConfigError, match=r"no variant 'x'"):
        plot_tradeoff(sweep, variant="x")
    figure = plot_tradeoff(sweep, variant="retraining.startEpoch=91")
    assert "91 epochs of retraining, retraining.startEpoch=91" in figure._suptitle.get_text()
    two = [*synthetic.grid(("ALDS",), nets=1), synthetic.reference_row(0) | {"network": "vgg"}]
    with pytest.raises(ConfigError, match=r"several networks"):
        plot_tradeoff(synthetic.frame(two))
    with pytest.raises(ConfigError, match=r"metric: must be one of"):
        plot_tradeoff(synthetic.frame(two[:-1]), metric="error")


def test_equal_results_give_equal_files(synthetic: Any, tmp_path: Any) -> None:
    results = synthetic.frame(synthetic.grid(("ALDS",), nets=2))
    contents = []
    for name in ("a", "b"):
        paths = save_figure(plot_tradeoff(results), tmp_path / name)
        assert [path.suffix for path in paths] == [".pdf", ".png"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert b"CreationDate" not in contents[0][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
