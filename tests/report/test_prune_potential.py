"""Prune potential against hand-worked curves and a brute-force search in plain Python."""

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiment.errors import ConfigError
from experiment.report import (
    LabelStyles,
    deltas_for,
    latex_table,
    markdown_table,
    prune_potential,
    read_source,
    smallest_within,
    write_report,
)
from experiment.report.plots.gallery import plots_of
from experiment.report.words import numbers


@pytest.mark.parametrize(
    ("delta", "removed", "keep"),
    [
        (0.0, 0.2, 0.8),
        (0.004, 0.2, 0.8),
        (0.005, 0.6, 0.4),  # 0.9 - 0.895 is a little more than 0.005 in floating point
        (0.05, 0.8, 0.2),
        (0.5, 0.9, 0.1),
    ],
)
def test_the_largest_share_within_delta(synthetic: Any, delta: float, removed: float, keep: float) -> None:
    results = synthetic.frame(synthetic.curve([(0.8, 0.9), (0.4, 0.895), (0.2, 0.85), (0.1, 0.5)]))
    for per in ("mean", "net"):
        row = prune_potential(results, delta, per=per).iloc[0]
        assert row["removed"] == pytest.approx(removed)
        assert row["keep_parameters"] == pytest.approx(keep)
        assert row["keep_flops"] == pytest.approx(keep / 2)


def test_a_larger_share_counts_although_a_smaller_one_does_not_satisfy(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.curve([(0.8, 0.9), (0.4, 0.8), (0.2, 0.899)]))
    assert prune_potential(results, 0.005).iloc[0]["removed"] == pytest.approx(0.8)


@pytest.mark.parametrize("per", ["mean", "net"])
def test_where_none_qualifies_the_reference_itself_removes_nothing(synthetic: Any, per: Any) -> None:
    results = synthetic.frame(synthetic.curve([(0.8, 0.5), (0.4, 0.4)]))
    row = prune_potential(results, 0.01, per=per).iloc[0]
    assert (row["removed"], row["keep_parameters"], row["keep_flops"]) == (0, 1, 1)
    assert row["top1"] == row["top1_reference"] == pytest.approx(0.9)
    assert row["cells"] == 1


def test_averaging_first_and_searching_first_differ(synthetic: Any) -> None:
    rows = synthetic.curve([(0.8, 0.9), (0.4, 0.9)], net=0) + synthetic.curve([(0.8, 0.9), (0.4, 0.89)], net=1)
    results = synthetic.frame(rows)
    mean = prune_potential(results, 0.005).iloc[0]
    assert mean["removed"] == pytest.approx(0.6)
    assert mean["top1"] == pytest.approx(0.895)
    assert mean["top1_std"] == pytest.approx(statistics.stdev([0.9, 0.89]))
    each = prune_potential(results, 0.005, per="net").iloc[0]
    assert each["removed"] == pytest.approx((0.6 + 0.2) / 2)
    assert each["removed_std"] == pytest.approx(statistics.stdev([0.6, 0.2]))
    assert each["cells"] == 2


def test_every_network_is_compared_with_its_own_reference(synthetic: Any) -> None:
    rows = synthetic.curve([(0.5, 0.90)], net=0, reference=0.92) + synthetic.curve([(0.5, 0.90)], net=1, reference=0.90)
    assert prune_potential(synthetic.frame(rows), 0.01).iloc[0]["removed"] == pytest.approx(0.5)  # mean loss 0.01
    assert prune_potential(synthetic.frame(rows), 0.01, per="net").iloc[0]["removed"] == pytest.approx(0.25)


def brute_force(cells: list[dict[str, Any]], delta: float, quantity: str, per: str) -> dict[str, float]:
    """Label -> largest share removed, by comparing every point with every other."""
    curves: dict[Any, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        curve = (cell["label"],) if per == "mean" else (cell["label"], cell["net"], cell["repetition"])
        curves[curve][cell["keep_target"]].append(cell)
    found = defaultdict(list)
    for curve, points in curves.items():
        best = 0.0
        for averaged in points.values():
            loss = sum(c["top1_reference"] - c["top1"] for c in averaged) / len(averaged)
            removed = sum(1 - c[f"keep_{quantity}"] for c in averaged) / len(averaged)
            if loss <= delta + 1e-9:
                best = max(best, removed)
        found[curve[0]].append(best)
    return {label: sum(values) / len(values) for label, values in found.items()}


@pytest.mark.parametrize("quantity", ["parameters", "flops"])
@pytest.mark.parametrize("per", ["mean", "net"])
def test_random_grids_against_brute_force(synthetic: Any, quantity: str, per: Any) -> None:
    random = np.random.default_rng(0)
    for _ in range(4):
        cells = [
            synthetic.cell_row(label, net, keep, repetition=repetition)
            | {"top1": random.uniform(0.85, 0.93), "keep_parameters": random.uniform(0.01, 1),
               "keep_flops": random.uniform(0.01, 1)}
            for label in ("A", "B", "C") for net in range(3) for repetition in range(2) for keep in (0.9, 0.5, 0.1)
        ]  # fmt: skip
        references = [synthetic.reference_row(net) for net in range(3)]
        for delta in (0.0, 0.01, 0.03):
            found = prune_potential(synthetic.frame(references + cells), delta, quantity, per)
            expected = brute_force(cells, delta, quantity, per)
            assert dict(zip(found["label"], found["removed"], strict=True)) == pytest.approx(expected)


def quantized_to_int8(synthetic: Any) -> list[Any]:
    """WT and, under the name i8, networks of every parameter in a byte."""
    rows: list[Any] = synthetic.grid(("WT",), nets=2, keeps=(0.5,))
    sizes = {name: rows[0][name] for name in ("parameters", "keep_parameters", "flops", "keep_flops", "top1")}
    rows += [
        synthetic.cell_row("i8", net, 1.0)
        | sizes
        | {"bytes_values": sizes["parameters"], "bytes_sparse": sizes["parameters"]}
        for net in (0, 1)
    ]
    return rows


def test_bytes_of_quantized_weights_are_counted_in_their_own_bits(synthetic: Any) -> None:
    results = synthetic.frame(quantized_to_int8(synthetic))
    for per in ("mean", "net"):
        found = prune_potential(results, 0.02, "bytes", per=per).set_index("label")["removed"]
        assert found["i8"] == pytest.approx(0.75)
        parameters = prune_potential(results, 0.02, per=per).set_index("label")["removed"]["WT"]
        assert found["WT"] == pytest.approx(parameters - 1 / 32, abs=1e-6)  # a bit for every element
    assert prune_potential(results, 0.02).set_index("label")["removed"]["i8"] == 0


def test_reports_show_bytes_where_weights_are_quantized(synthetic: Any, tmp_path: Path) -> None:
    source = read_source(synthetic.write_experiment(tmp_path / "i8", quantized_to_int8(synthetic)))
    assert "tradeoff-top1-bytes" in [plot.stem for plot in plots_of(source, LabelStyles())]
    text = write_report(source.folder, []).markdown.read_text()
    assert text.count("| Bytes as stored removed (%) |") == 2, "by mean and by network"
    plain = synthetic.write_experiment(tmp_path / "fp32", synthetic.grid(("WT",), nets=1, keeps=(0.5,)))
    assert "ytes as stored" not in write_report(plain, []).markdown.read_text()


def test_only_finished_cells_count_and_missing_ones_are_told(synthetic: Any) -> None:
    rows = synthetic.curve([(0.5, 0.9), (0.2, 0.9)], net=0) + synthetic.curve([(0.5, 0.9)], net=1)
    rows += [synthetic.broken_row("ALDS", 1, 0.2, "failed", "it broke")]
    rows += [synthetic.broken_row("SVD", net, 0.5, "infeasible", "too small") for net in (0, 1)]
    found = prune_potential(synthetic.frame(rows), 0.0).set_index("label")
    assert found.loc["ALDS", "removed"] == pytest.approx(0.8)
    assert not found.loc["ALDS", "complete"]
    assert math.isnan(found.loc["SVD", "removed"])
    assert found.loc["SVD", "cells"] == 0
    assert not prune_potential(synthetic.frame(rows), 0.0, per="net").set_index("label").loc["ALDS", "complete"]
    assert prune_potential(synthetic.frame(rows[:1] + rows[2:3]), 0.0, per="net").iloc[0]["complete"]
    table = markdown_table(synthetic.frame(rows), deltas=[0.0])
    assert "| ALDS | 80.0 (5.0×) † |" in table  # noqa: RUF001
    assert "| SVD | – |" in table  # noqa: RUF001


def test_methods_that_set_their_own_density_have_one_point(synthetic: Any) -> None:
    rows = [row | {"keep_target": ""} for row in synthetic.curve([(0.007, 0.9)], label="Prune(0.007)")]
    assert prune_potential(synthetic.frame(rows), 0.0).iloc[0]["removed"] == pytest.approx(0.993)


def test_experiments_together_stay_apart(synthetic: Any) -> None:
    one = synthetic.frame(synthetic.curve([(0.5, 0.9)]))
    other = synthetic.frame([row | {"network": "vgg16_bn"} for row in synthetic.curve([(0.2, 0.9)])])
    both = pd.concat([one, other], ignore_index=True)
    found = prune_potential(both, 0.0).set_index("network")["removed"]
    assert found.to_dict() == pytest.approx({"resnet20": 0.5, "vgg16_bn": 0.8})
    assert markdown_table(both, deltas=[0.0]).splitlines()[0] == "| Network | Method | loss ≤ 0 points |"


def test_the_unpruned_control_removes_nothing(synthetic: Any) -> None:
    fake = synthetic.curve([(1.0, 0.91), (1.0, 0.92)], label="Fake")
    assert prune_potential(synthetic.frame(fake), 0.03).iloc[0]["removed"] == 0


@pytest.mark.parametrize("arguments", [(-0.1,), (math.nan,), (0.1, "words"), (0.1, "parameters", "cell")])
def test_wrong_arguments_are_refused(synthetic: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match=r"must be"):
        prune_potential(synthetic.frame(synthetic.curve([(0.5, 0.9)])), *arguments)


def test_results_without_any_finished_cell(synthetic: Any) -> None:
    results = synthetic.frame([synthetic.reference_row(0), synthetic.broken_row("SVD", 0, 0.5, "failed", "no")])
    assert prune_potential(results, 0.01)["removed"].isna().all()
    assert prune_potential(synthetic.frame([synthetic.reference_row(0)]), 0.01).empty
    assert "SVD" in latex_table(results)


def test_levels_are_larger_where_nothing_was_retrained(synthetic: Any) -> None:
    assert deltas_for(synthetic.frame(synthetic.curve([(0.5, 0.9)], epochs=0))) == (0.01, 0.05, 0.1, 0.2, 0.3)
    assert deltas_for(synthetic.frame(synthetic.curve([(0.5, 0.9)], epochs=5))) == (0.0, 0.005, 0.01, 0.02, 0.03)


def test_latex_rows_are_whole_and_the_best_are_bold(synthetic: Any) -> None:
    rows = [synthetic.reference_row(0, top1=0.9)]
    for label, keep in (("A_1", 0.2), ("B", 0.204), ("C", 0.5)):
        rows += synthetic.curve([(keep, 0.898)], label=label)
    table = latex_table(synthetic.frame(rows), deltas=[0.0, 0.01])
    body = [line for line in table.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert [line.count("&") for line in body] == [7] * 4
    assert body[1] == (
        r"resnet20 CIFAR10 (90.00) & A\_1 & -- & 0.00 & 0.00 & $-$0.20 & \textbf{80.00} & \textbf{90.00} \\"
    )
    assert r"\textbf{79.60}" in body[2]  # within half a point of the best
    assert r"\textbf" not in body[3]


def test_more_multiply_adds_than_before_have_a_typographic_minus() -> None:
    assert numbers.percent(-1.0881, 2) == "\N{MINUS SIGN}108.81"
    assert numbers.percent(0.4, 1) == "40.0"


def test_the_smallest_network_within_a_loss(synthetic: Any) -> None:
    rows = synthetic.curve([(0.5, 0.9), (0.2, 0.893), (0.1, 0.8)]) + synthetic.curve([(0.01, 0.9)], label="Fake")
    results = synthetic.frame([synthetic.reference_row(0, top1=0.9), *rows])
    row = smallest_within(results, 0.01)
    assert row is not None
    assert (row["label"], row["keep_target"]) == ("ALDS", 0.2)
    worse = smallest_within(synthetic.frame(synthetic.curve([(0.5, 0.6), (0.2, 0.7)])), 0.01)
    assert worse is not None
    assert worse["keep_target"] == 0.2  # none is within: the most accurate one
    assert smallest_within(synthetic.frame([synthetic.reference_row(0)]), 0.01) is None
