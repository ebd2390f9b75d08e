"""What one would deploy, against a search through all rows."""

import pandas as pd
import pytest

from experiment.report.deployments import costs_of, deployments, pareto_front, runtimes_of
from experiment.report.plots.deployment import plot_deployment
from experiment.report.results_table import tidy


@pytest.fixture
def results() -> pd.DataFrame:
    rows = [
        ("Reference", 1.0, 0.98, 0.97, 1000, 300, 4.0, 1.0),
        ("FT", 0.5, 0.96, 0.95, 500, 160, 2.0, 0.5),
        ("FT", 0.1, 0.90, 0.91, 100, 40, 1.0, 0.9),
        ("WT", 0.1, 0.97, None, 100, None, 4.0, None),  # refused by the runtime
    ]
    names = [
        "label",
        "keep_target",
        "top1",
        "top1_onnx",
        "bytes_file",
        "bytes_onnx",
        "latency_ms_b1",
        "latency_onnx_b1",
    ]
    frame = pd.DataFrame(rows, columns=names)
    about = {"dataset": "Digits", "network": "lenet5", "variant": "", "net": 0, "status": "done", "epochs": 0}
    return frame.assign(**about, method=frame["label"], keep_parameters=frame["keep_target"])


def test_the_front_has_what_no_other_network_beats(results: pd.DataFrame) -> None:
    table = deployments(results)
    assert len(table) == 7
    assert costs_of(table) == ["bytes", "latency_b1"]
    for cost in costs_of(table):
        rows = table.to_dict("records")
        beaten = [
            any(o[cost] <= r[cost] and o["figure"] >= r["figure"] and o != r for o in rows) for r in rows
        ]  # fmt: skip
        kept = {(r["label"], r["keep_target"], r["runtime"]) for r, b in zip(rows, beaten, strict=True) if not b}
        front = pareto_front(table, cost, "higher")
        assert {(r["label"], r["keep_target"], r["runtime"]) for r in front.to_dict("records")} == kept
    lowest = pareto_front(table, "bytes", "lower")
    assert list(lowest["figure"]) == [0.91, 0.90]


def test_points_of_all_runtimes_are_drawn(results: pd.DataFrame) -> None:
    figure = plot_deployment(tidy(results), "latency_b1")
    drawn = [x for line in figure.axes[0].lines for x in line.get_xdata()]
    assert {4.0, 2.0, 1.0, 0.5, 0.9} <= set(map(float, drawn))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-3:] == ["torch", "onnx", "Pareto front"]


def test_a_runtime_that_gave_nothing_is_left_out(results: pd.DataFrame) -> None:
    empty = dict.fromkeys(("top1_openvino", "bytes_openvino", "latency_openvino_b1"), "")
    read = results.assign(**empty).astype(str).replace({"nan": "", "None": ""})  # as from results.csv
    table = deployments(read)
    assert runtimes_of(tidy(read)) == ["onnx"]
    assert set(table["runtime"]) == {"torch", "onnx"}
    assert costs_of(table) == ["bytes", "latency_b1"]
    plot_deployment(read, "bytes")
