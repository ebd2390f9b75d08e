"""Reports about other tasks than classification: direction, unit and name of the primary metric."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from experiment.report import (
    latex_table,
    markdown_table,
    plot_tradeoff,
    plot_variants,
    prune_potential,
    smallest_within,
    write_report,
)
from experiment.report.plots import gallery
from experiment.report.primary_metric import AGREEMENT, ReportedMetric, metric_named
from experiment.report.results_table import metrics_of
from experiment.report.words.titles import axis_title, column_title
from experiment.tasks import TASKS, find_task

PERPLEXITY = ("perplexity", "lower", "value")
ENDS = ("", "_before_retraining", "_reference")


def of_task(row: dict[str, Any], metric: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    """A row of another task: a perplexity of 5 for an accuracy of 0.9, 25 more for a tenth less."""
    name, better, _ = metric
    new = {column: value for column, value in row.items() if not column.startswith("top")}
    for end in ENDS:
        top1 = row["top1" + end]
        new[name + end] = 5 + 250 * (0.9 - top1) if better == "lower" else top1 - 0.2
    return new | dict(zip(("primary", "better", "unit"), metric, strict=True)) | more


POINTS = [(0.8, 0.9), (0.6, 0.8999), (0.4, 0.8995), (0.2, 0.9002), (0.1, 0.7)]  # perplexity 5, 5.025, 5.125, 4.95, 55


@pytest.mark.parametrize(("delta", "expected"), [(0.0, 0.8), (0.0049, 0.8), (11.0, 0.9)])
def test_prune_potential_allows_a_share_of_the_reference(synthetic: Any, delta: float, expected: float) -> None:
    rows = [of_task(row, PERPLEXITY) for row in synthetic.curve(POINTS)]
    for per in ("mean", "net"):
        (row,) = prune_potential(synthetic.frame(rows), delta, per=per).to_dict("records")
        assert row["removed"] == pytest.approx(expected)
        perplexity = 4.95 if expected == 0.8 else 55
        assert (row["perplexity"], row["perplexity_reference"]) == pytest.approx((perplexity, 5))


def test_the_best_network_has_the_lowest_perplexity(synthetic: Any) -> None:
    rows = [of_task(row, PERPLEXITY) for row in synthetic.curve(POINTS)]
    within = [row for row in rows if row["keep_target"] in (0.6, 0.4)]
    assert smallest_within(synthetic.frame(within), 0.006)["keep_target"] == 0.6  # 0.5 % and 2.5 % above
    assert smallest_within(synthetic.frame(within), 0.03)["keep_target"] == 0.4
    assert smallest_within(synthetic.frame(within), 0.001)["keep_target"] == 0.6  # none: the best one


def test_report_of_a_perplexity(synthetic: Any, tmp_path: Path) -> None:
    rows = [of_task(row, PERPLEXITY, rmse=0.25) for row in synthetic.grid(("ALDS", "WT"), nets=2, epochs=3)]
    kinds = [lambda *of: itertools.islice(gallery.tradeoffs(*of), 2)]
    report = write_report(synthetic.write_experiment(tmp_path / "text", rows), kinds)
    assert [path.name for path in report.main_plots] == ["tradeoff-perplexity-parameters.png"]
    text = report.markdown.read_text()
    for words in (
        "whose increase of perplexity is at most", "| increase ≤ 0.5 % |", "| change (%) |",
        "# loss, perplexity and rmse on the test set",
        "Perplexity against the share of FLOPs removed", "- **Increase of perplexity**: of the compressed network",
    ):  # fmt: skip
        assert words in text
    assert "ccuracy" not in text
    assert "op-1" not in text
    row = next(row for row in rows if row["label"] == "ALDS" and row["net"] == 0)
    assert f"{row['perplexity_reference']:.3f}" in text
    assert "$\\Delta$perplexity" in report.table.read_text()


def test_lower_is_better_on_plots(synthetic: Any) -> None:
    rows = synthetic.grid(("ALDS",), nets=2, epochs=3)
    high = plot_tradeoff(synthetic.frame(rows))
    low = plot_tradeoff(synthetic.frame([of_task(row, PERPLEXITY) for row in rows]))
    assert [axes.get_title() for axes in low.axes] == ["whole range", "close-up: 5 % above the reference"]
    assert [axes.get_title() for axes in high.axes] == ["whole range", "close-up: 5 points below the reference"]
    (reference,) = {line.get_ydata()[0] for line in low.axes[1].lines if line.get_linestyle() == "--"}
    bottom, top = low.axes[1].get_ylim()
    assert bottom < reference < top == pytest.approx(1.05 * reference)
    assert low.axes[0].get_ylabel() == "Perplexity (lower is better), logarithmic"


def test_variants_of_different_tasks_stay_apart(synthetic: Any, tmp_path: Path) -> None:
    """Each has its own plots and tables; a table of both takes every row by its own metric."""
    text = [of_task(row, PERPLEXITY) for row in synthetic.grid(("ALDS",), nets=1)]
    map_of = ("mean_iou", "higher", "fraction")
    maps = [of_task(row, map_of) for row in synthetic.grid(("ALDS",), nets=1, variant="network.task=segmentation")]
    columns = dict.fromkeys(column for row in (*text, *maps) for column in row)
    rows = [{column: row.get(column, "") for column in columns} for row in (*text, *maps)]
    both = synthetic.frame(rows)
    apart = [prune_potential(synthetic.frame(own), 0.01)["removed"][0] for own in (text, maps)]
    assert list(prune_potential(both, 0.01)["removed"]) == apart
    assert "increase ≤ 1 % or loss ≤ 1 point |" in markdown_table(both)
    assert "$\\Delta$ & CR-P" in latex_table(both)
    with pytest.raises(Exception, match="at least two variants of the same reference networks"):
        plot_variants(both)
    folder = synthetic.write_experiment(tmp_path / "both", rows)
    stems = {path.stem for path in write_report(folder, [gallery.tradeoffs]).plots}
    assert {"tradeoff-perplexity-parameters-unchanged", "tradeoff-mean_iou-flops-network.task=segmentation"} <= stems


def test_differences_of_fractions_are_in_points() -> None:
    flips, kl, worst = (metric_named(name, ReportedMetric()) for name in AGREEMENT)
    assert column_title(flips) == "Changed test predictions (%)"
    assert column_title(kl) == "KL divergence from the reference"
    assert column_title(worst) == "Loss of accuracy in the worst class (points)"
    assert axis_title("Worst class", worst) == "Worst class (points, lower is better)"


def test_metrics_are_named_as_their_tasks_name_them(synthetic: Any) -> None:
    for name in TASKS:
        primary, *others = find_task(name).metrics
        reported = ReportedMetric(primary.name, primary.better, primary.unit)
        assert reported.title.startswith(primary.title)  # "top-1 accuracy" in reports, "top-1" in messages
        assert primary.is_as_good(0.4, primary.worst_allowed(0.5, reported.loss(0.5, 0.4)), 1e-9)
        assert not primary.is_as_good(0.4, primary.worst_allowed(0.5, reported.loss(0.5, 0.4) - 0.01))
        row = of_task(synthetic.reference_row(0), (primary.name, primary.better, primary.unit), word="x", count=3)
        row |= {metric.name: 0.5 for metric in others}
        assert set(metrics_of(synthetic.frame([row]))) == {primary.name, *(metric.name for metric in others)}
