"""Figures in report.html: points name their cells, labels are data, and equal figures are equal text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from experiment.report import LabelStyles, read_source
from experiment.report.mean_and_spread import summarize
from experiment.report.plots.figure import new_figure, place_legend, save_figure
from experiment.report.plots.gallery import plots_of
from experiment.report.plots.marks import mark, read_mark
from experiment.report.plots.svg import svg_of
from experiment.report.plots.tradeoff import plot_tradeoff
from experiment.report.primary_metric import ReportedMetric
from experiment.report.words.points import cells_in_words

HOSTILE = (
    "<script>alert(1)</script>",
    "\"a\" & 'b' ]]> -->",
    "$\\ell_1$",
    "$x^{",
    "_under",
    "\ufffe\x01\u202e",
    " id='x'",
)


def saved(figure: Any, folder: Path) -> ElementTree.Element:
    """The parsed SVG of a figure, laid out as in a report."""
    save_figure(figure, folder / "plot")
    return ElementTree.fromstring(svg_of(figure, "plot").replace("\ufffe", ""))  # HTML allows it in attributes, XML not


def titles(root: ElementTree.Element) -> list[str]:
    return [str(title.text) for title in root.iter("title")]


def test_a_point_names_its_cells(synthetic: Any, tmp_path: Path) -> None:
    rows = [
        synthetic.reference_row(net, top1=0.9) for net in (0, 1)
    ] + [
        synthetic.cell_row("ALDS", net, 0.5) | {"top1": top1, "top1_reference": 0.9, "keep_parameters": 0.4995}
        for net, top1 in enumerate((0.87, 0.89))
    ]  # fmt: skip
    root = saved(plot_tradeoff(synthetic.frame(rows)), tmp_path)
    (title,) = titles(root)
    assert title.splitlines() == [
        "ALDS, keep ratio 0.5",
        "Top-1 test accuracy (%): 88",
        "Standard deviation: 1.4",
        "Difference from the reference: −2.00 points",  # noqa: RUF001
        "Parameters kept: 49.95 %",
        "Networks: n0, n1",
        "Parameters removed (%): 50.05",
    ]


def test_points_lie_on_the_markers_that_are_seen(synthetic: Any, tmp_path: Path) -> None:
    """A close-up cuts curves off: points outside of it have no area that answers to the mouse."""
    figure = plot_tradeoff(synthetic.frame(synthetic.grid(("WT", "SVD"), nets=2)))
    root = saved(figure, tmp_path)
    whole, close = figure.axes
    low, high = close.get_ylim()
    for axes, groups in ((whole, ("WT whole range", "SVD whole range")), (close, ("WT close-up", "SVD close-up"))):
        seen = [p for line in axes.lines for p in line.get_xydata() if len(line.get_xydata()) > 2]
        seen = [p for p in seen if axes is whole or low <= p[1] <= high]
        parts = [g for g in root.iter("g") if str(g.get("aria-label")).startswith(groups)]
        circles = [circle for part in parts for circle in part.iter("circle")]
        places = np.array([[float(circle.get(name, "")) for name in ("cx", "cy")] for circle in circles])
        drawn = {(round(float(use.get("x", "")), 1), round(float(use.get("y", "")), 1)) for use in root.iter("use")}
        assert len(seen) == len(places) >= 5
        assert {tuple(place) for place in places.tolist()} <= drawn
        pixels = axes.transData.transform(seen) * 72 / figure.dpi
        assert places == pytest.approx(np.array([(x, 72 * figure.get_figheight() - y) for x, y in pixels]), abs=0.06)


def test_text_is_text_and_nothing_reaches_beyond_the_figure(synthetic: Any, tmp_path: Path) -> None:
    figure, again = (plot_tradeoff(synthetic.frame(synthetic.grid(("WT",), nets=2))) for _ in range(2))
    for each in (figure, again):
        save_figure(each, tmp_path / "plot")
    text = svg_of(figure, "a")
    assert text == svg_of(again, "a"), "equal data give equal text"
    assert "Parameters removed (%)</text>" in text
    assert not re.search(r"<style|xmlns|http|<\?xml|<!|font-family: 'DejaVu Sans'", text)
    ids = [set(re.findall(r' id="([^"]+)"', svg_of(figure, name))) for name in ("a", "b")]
    used = set(re.findall(r'(?:url\(|href=")#(\w+)', text))
    assert ids[0] == used
    assert not ids[0] & ids[1], "figures of a page have ids of their own"
    root = ElementTree.fromstring(text)
    ticks = [part for part in root.iter() if part.get("aria-hidden") == "true"]
    assert len(ticks) > 5
    assert not svg_of(new_figure(1)[0], "empty")


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
@pytest.mark.parametrize("label", HOSTILE)
def test_labels_are_data(label: str, tmp_path: Path) -> None:
    figure, (axes,) = new_figure(1)
    line = mark(axes.plot([1, 2], [1, 2])[0], label, [f"{label}, {place}" for place in (1, 2)])
    place_legend(figure, [(line, label)])
    root = saved(figure, tmp_path)
    known = ["svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect", "circle", "title"]
    assert {part.tag for part in root.iter()} <= set(known)
    entries = {str(part.get("data-entry")) for part in root.iter() if "data-entry" in part.attrib}
    labels = {str(part.get("data-label")) for part in root.iter() if "data-label" in part.attrib}
    assert len(entries) == 1
    assert entries == labels
    assert [title.splitlines()[0] for title in titles(root)] == [f"{next(iter(entries))}, {place}" for place in (1, 2)]
    assert read_mark(None) == read_mark("line2d_1") == []


def everything(synthetic: Any) -> list[Any]:
    """An experiment with costs, runtimes, noise and two test sets."""
    rows = synthetic.grid(("ALDS", "WT"), nets=2, keeps=(0.5, 0.2))
    for row in rows:
        row |= {"latency_ms_b1": row["keep_target"], "latency_iqr_ms_b1": 0.1, "latency_onnx_b1": 0.3}
        row |= {"top1_onnx": row["top1"], "bytes_onnx": row["bytes_file"], "latency_device": "cpu"}
        row |= {"noise_agreement_0.5": 0.9, "noise_distance_0.5": 0.1, "noise_excess_error_0.5": 0.01}
    return [row | {"dataset_test": name} for row in rows for name in ("clean", "fog")]


def rewound(synthetic: Any) -> list[Any]:
    """Two variants of the same reference networks."""
    variants = [f"experiments.rewind={name}" for name in ("weights", "random")]
    rows = [row for name in variants for row in synthetic.grid(("WT",), 2, (0.5, 0.2), variant=name)]
    return [row | ({"cell": f"r{row['net']}"} if row["method"] == "Reference" else {}) for row in rows]


@pytest.mark.parametrize(
    ("make", "first_words"),
    [
        (everything, {
            "tradeoff-top1-parameters": "ALDS, keep ratio 0.5\nTop-1 test accuracy (%): ",
            "cost-latency_ms_b1": "ALDS, keep ratio 0.5\nTop-1 test accuracy (%): ",
            "deploy-latency_b1": "ALDS, keep ratio 0.5, onnx\nTop-1 test accuracy (%): ",
            "potential-test-sets": "ALDS, fog\nParameters removed (%): ",
            "excess-error": "ALDS, keep ratio 0.5\nExcess error on the other test sets beyond the reference's (points)",
            "noise": "ALDS, keep ratio 0.5\nPredictions equal (%): 90",
        }),
        (lambda s: s.sweep(("ALDS",), nets=2), {"sweep-parameters": "ALDS\nParameters removed (%): "}),
        (rewound, {"compare-top1-parameters": "WT, rewound weights, keep ratio 0.5\n"}),
    ],
)  # fmt: skip
def test_every_kind_of_curves_is_told(
    synthetic: Any, tmp_path: Path, make: Callable[[Any], Any], first_words: dict[str, str]
) -> None:
    source = read_source(synthetic.write_experiment(tmp_path, make(synthetic)))
    found = {plot.stem: plot for plot in plots_of(source, LabelStyles()) if plot.stem in first_words}
    assert set(found) == set(first_words)
    for stem, words in first_words.items():
        root = ElementTree.fromstring(svg_of(found[stem].draw(), stem))
        labels = {str(part.get("data-label")) for part in root.iter("g") if part.get("class") == "points"}
        assert labels <= {str(part.get("data-entry")) for part in root.iter()}, "the legend has every label"
        assert [title for title in titles(root) if title.startswith(words)], titles(root)
        assert len(titles(root)) == len(list(root.iter("circle")))


def test_words_of_other_metrics(synthetic: Any) -> None:
    """Metrics without a column of the reference, values that are no fractions, repetitions, and no keep ratio."""
    cells = [synthetic.cell_row("P(.1)", 0, 0.5, repetition=r) | {"keep_target": "", "loss": 0.5} for r in (0, 1)]
    summary = summarize(synthetic.frame(cells))
    styles, loss = LabelStyles({"P(.1)": "Patterns"}), ReportedMetric("loss", "lower", "value")
    (words,) = cells_in_words(summary, styles, loss, 0.4)
    assert words.startswith("Patterns, size set by the method\n")
    assert "Difference from the reference: +25.00 %" in words
    assert words.endswith("Networks: n0 (2 cells)")
    for unknown in (0.0, float("nan")):
        assert "Difference" not in cells_in_words(summary, styles, loss, unknown)[0]
