"""The ranking of layers that are compressed alone, its rule, its section and its plot, on made-up losses."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.report import LabelStyles
from experiment.report.document import Code, Table, Text
from experiment.report.plots import gallery
from experiment.report.plots.sensitivity import plot_sensitivity
from experiment.report.primary_metric import ReportedMetric
from experiment.report.results_folder import read_source
from experiment.report.sensitivity import middle_keep, ranking
from experiment.report.words.sensitivity import layers_to_leave_whole
from experiment.run.disk.sensitivity_table import COLUMNS


def rows(label: str, losses: dict[str, tuple[float, int]], net: int = 0, keep: float = 0.5) -> list[dict[str, Any]]:
    common = {
        "variant": "",
        "net": net,
        "label": label,
        "metric": "top1",
        "reference": 0.9,
        "samples": 1000,
        "note": "",
    }
    return [
        {**common, "layers": layer, "parameters": size, "keep": k, "figure": 0.9 - loss, "loss": loss}
        for layer, (loss, size) in losses.items()
        for k in (keep, 0.1)
    ]


def test_the_middle_keep_ratio_is_the_larger_of_two() -> None:
    assert [middle_keep(keeps) for keeps in ([0.8, 0.5, 0.3, 0.1], [0.1, 0.5, 0.9], [0.3])] == [0.5, 0.5, 0.3]


def test_layers_are_left_whole_from_the_top_while_they_are_small() -> None:
    losses = {"a": (0.02, 30), "b": (0.30, 60), "c": (0.009, 1), "d": (0.2, 500), "e": (0.02, 20), "f": (0.011, 10)}
    table = ranking(pd.DataFrame(rows("WT", losses)), parameters=1000)
    assert list(table["layers"]) == ["b", "d", "a", "e", "f", "c"]
    # d holds more than a tenth, e no longer fits behind b and a, f does, c costs too little
    assert list(table["layers"][table["whole"]]) == ["b", "a", "f"]


def test_losses_are_means_over_networks() -> None:
    both = rows("WT", {"a": (0.0, 1), "b": (0.04, 1)}) + rows("WT", {"a": (0.06, 1), "b": (0.0, 1)}, net=1)
    table = ranking(pd.DataFrame(both), parameters=1000)
    assert list(zip(table["layers"], table["loss"], strict=True)) == [("a", 0.03), ("b", 0.02)]


@pytest.fixture
def folder(synthetic: Any, tmp_path: Path) -> Path:
    made = tmp_path / "results" / "small"
    synthetic.write_experiment(made, synthetic.grid(("WT", "FT"), nets=1, keeps=(0.5,), epochs=0), cells=False)
    found = rows("WT", {"0": (0.2, 10), "fc1": (0.0, 10)}) + rows(
        "FT", {"conv1 conv2": (0.1, 10), "conv3": (-0.01, 10)}
    )
    found += [dict.fromkeys(COLUMNS, "") | {"label": "Uniform", "samples": 1000, "note": "it has no setting ignore"}]
    pd.DataFrame(found)[list(COLUMNS)].to_csv(made / "sensitivity.csv", index=False)
    return made


def test_the_section_ends_with_a_line_to_copy(folder: Path) -> None:
    section = layers_to_leave_whole(read_source(folder), LabelStyles({}, {}))
    assert section is not None
    assert [block.text for block in section.blocks if isinstance(block, Code)] == [
        "ignore: ['0']", "ignore: [conv1, conv2]"
    ]  # fmt: skip
    first, second = (block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in second.rows] == ["conv1, conv2", "conv3"]
    assert first.header[1] == "Loss at keep 0.5 (points)"
    assert [row[1] for row in (*first.rows, *second.rows)] == ["20.00", "0.00", "10.00", "−1.00"]  # noqa: RUF001
    last = section.blocks[-1]
    assert isinstance(last, Text)
    assert last.text == "Uniform: not measured: it has no setting ignore."


def test_the_plot_has_a_panel_per_label_with_its_own_layers(folder: Path) -> None:
    (plot,) = gallery.sensitivity(read_source(folder), LabelStyles({}, {}))
    assert plot.stem == "sensitivity"
    figure = plot.draw()
    first, second, *_ = figure.axes
    assert [label.get_text() for label in second.get_yticklabels()] == ["conv1 +1", "conv3"]
    assert [label.get_text() for label in first.get_xticklabels()] == ["0.5", "0.1"]
    assert [text.get_text() for text in first.texts] == ["20.0", "20.0", "0.0", "0.0"]


def test_a_rank_that_there_is_not_leaves_a_gap() -> None:
    table = pd.DataFrame(rows("SVD", {"fc1": (0.1, 10), "fc2": (0.2, 10)}))
    figure = plot_sensitivity(table.iloc[:3], ReportedMetric(), LabelStyles({}, {}))
    assert [text.get_text() for text in figure.axes[0].texts] == ["10.0", "10.0", "20.0", "–"]  # noqa: RUF001


def test_without_the_measurement_there_is_neither(folder: Path) -> None:
    (folder / "sensitivity.csv").unlink()
    source = read_source(folder)
    assert layers_to_leave_whole(source, LabelStyles({}, {})) is None
    assert list(gallery.sensitivity(source, LabelStyles({}, {}))) == []
