"""The answer of a report, in sentences made from hand-written results."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from experiment.report import LabelStyles, read_source, write_report
from experiment.report.comparisons import Comparisons, compare
from experiment.report.document import Items, Section, Text
from experiment.report.paired import Estimate
from experiment.report.primary_metric import ReportedMetric
from experiment.report.words import numbers
from experiment.report.words.advice import _loss, in_short
from experiment.report.words.ranking import best_methods, every_pair
from experiment.report.words.spending import pareto_fronts, time_spent


def answer(folder: Path) -> tuple[str, dict[str, str]]:
    """The sentences, and the reductions by allowed loss."""
    source = read_source(folder)
    section = in_short(source, compare(folder, source.results), LabelStyles())
    assert section is not None
    texts = [block.text for block in section.blocks if isinstance(block, Text)]
    (items,) = (block for block in section.blocks if isinstance(block, Items))
    return " ".join(texts), dict(items.items)


def experiment(synthetic: Any, folder: Path, nets: int = 1, epochs: int = 3) -> Path:
    """ALDS is better down to 0.2; WT loses more than a point from there on, and has the smaller network at 0.5."""
    rows = [synthetic.reference_row(net, top1=0.9) for net in range(nets)]
    for net in range(nets):
        rows += synthetic.curve([(0.5, 0.9), (0.2, 0.896), (0.1, 0.85)], "ALDS", net, epochs=epochs)
        rows += synthetic.curve([(0.5, 0.899), (0.19, 0.88), (0.1, 0.8)], "WT", net, epochs=epochs)
    return Path(synthetic.write_experiment(folder, rows))


def test_reductions(synthetic: Any, tmp_path: Path) -> None:
    _, found = answer(experiment(synthetic, tmp_path))
    assert list(found) == ["Without loss", "Within 0.5 and 1 points", "Within 2 points"]
    assert found["Without loss"].startswith(
        "ALDS removes 50.0 % of the parameters (2.0\u00d7 fewer), with a loss of 0.00"
    )
    assert (
        "ALDS removes 80.0 % of the parameters (5.0\u00d7 fewer), with a loss of 0.40 points;"
        in (found["Within 0.5 and 1 points"])
    ), "the interval of one network without figures of samples is unknown"
    assert found["Within 2 points"].startswith(
        "WT removes 81.0 % of the parameters (5.3\u00d7 fewer) and ALDS 80.0 %, WT with a loss of 2.00 points"
    )
    assert "ALDS removes 90.0 % of the FLOPs" in found["Within 0.5 and 1 points"]


def test_a_negative_loss_is_a_gain() -> None:
    top1, perplexity = ReportedMetric(), ReportedMetric("perplexity", "lower", "value")
    gain = Estimate(-0.5, -0.7035, -0.2056, 0.001)
    assert _loss(top1, gain) == "with a gain of 50.00 points (95 % interval 20.56 to 70.35)"
    assert _loss(perplexity, gain) == "with a decrease of 50.00 % (95 % interval 20.56 to 70.35)"
    unknown = Estimate(0.01, -math.inf, math.inf, 1.0)
    assert _loss(top1, unknown) == "with a loss of 1.00 points"
    assert _loss(perplexity, unknown) == "with an increase of 1.00 %"


@pytest.mark.parametrize(
    ("loss", "warned"),
    [
        (Estimate(-0.5, -0.7035, -0.2056, 0.01), True),
        (Estimate(-0.03, -math.inf, math.inf, 1.0), True),  # one network, without figures of samples
        (Estimate(-0.03, -0.07, 0.01, 0.1), False),
        (Estimate(-0.01, -math.inf, math.inf, 1.0), False),
        (Estimate(-0.01, -0.011, -0.009, 0.001), True),
        (Estimate(-0.01, -0.018, -0.002, 0.03), False),  # one of two comparisons: 0.06
        (Estimate(0.5, 0.2, 0.7, 0.001), False),
    ],
)
def test_a_warning_if_compressed_networks_are_better(
    synthetic: Any, tmp_path: Path, loss: Estimate, warned: bool
) -> None:
    source = read_source(experiment(synthetic, tmp_path))
    losses = {("", "ALDS", 0.5): loss, ("", "WT", 0.5): Estimate(0.0, -0.1, 0.1, 1.0)}
    section = in_short(source, Comparisons([], losses), LabelStyles())
    assert section is not None
    warnings = [b.text for b in section.blocks if isinstance(b, Text) and b.text.startswith("Warning: ")]
    gain = f"Warning: compressed networks are up to {-100 * loss.value:.2f} points better than the uncompressed one."
    assert [text.startswith(gain) for text in warnings] == [True] * warned


def test_sentences(synthetic: Any, tmp_path: Path) -> None:
    text, _ = answer(experiment(synthetic, tmp_path))
    assert "one network" in text
    assert "top-1 accuracy is 90.00 %" in text
    assert "At keep ratio 0.1, ALDS has the best top-1 accuracy, but is not shown to be better than WT." in text
    assert "At none of 2 keep ratios is one method better than all others." in text, "0.5 and 0.1 have both methods"
    assert "other networks of this kind, since there is one" in text
    assert "retraining.tune" in text
    assert "Compression and retraining take 0.80 s per network" in text
    prune_only, _ = answer(experiment(synthetic, tmp_path / "only", epochs=0))
    assert "retrained networks" in prune_only
    assert "retraining.tune" not in prune_only


def test_what_is_not_known_is_not_said(synthetic: Any, tmp_path: Path) -> None:
    source = read_source(synthetic.write_experiment(tmp_path, [synthetic.reference_row(0)]))
    found = compare(tmp_path, source.results)
    styles = LabelStyles()
    assert in_short(source, found, styles) is None
    assert best_methods(found.rankings, styles) is None
    assert every_pair(found.rankings, styles) is None
    assert pareto_fronts(source, styles) is None
    assert time_spent(source, styles) is None
    rows = [synthetic.reference_row(0), synthetic.cell_row("WT", 0, 0.5) | {"top1": 0.2}]
    text, reductions = answer(synthetic.write_experiment(tmp_path / "bad", rows))
    assert set(reductions.values()) == {"no method removes anything"}
    assert "smallest file" not in text


def test_of_equal_sizes_the_best_figure_counts(synthetic: Any, tmp_path: Path) -> None:
    """Removing 80.1 % instead of 80 % is rounding; the label with a comma is told apart."""
    rows = [synthetic.reference_row(0, top1=0.9), *synthetic.curve([(0.199, 0.891)], "ALDS", epochs=1)]
    rows += synthetic.curve([(0.2, 0.899)], "WT, all", epochs=1, bytes_file=9_000)
    text, found = answer(synthetic.write_experiment(tmp_path, rows))
    assert found[list(found)[-1]].startswith(
        '"WT, all" removes 80.0 % of the parameters (5.0\u00d7 fewer) and ALDS 80.1 %,'
    )
    assert 'The smallest file within 1 point: "WT, all" at keep ratio 0.2, 9.0 kB instead of' in text
    assert re.search(r"9\.0 kB instead of [\d,.]+ kB\.", text), "both have their unit"


def test_sizes_that_read_the_same_are_not_ordered(synthetic: Any, tmp_path: Path) -> None:
    """FT removes slightly more than WT, whose accuracy is better: the gain is that of WT."""
    rows = [synthetic.reference_row(0, top1=0.9), *synthetic.curve([(0.05, 0.92)], "WT", epochs=1)]
    rows += synthetic.curve([(0.0497, 0.91)], "FT", epochs=1)
    _, found = answer(synthetic.write_experiment(tmp_path / "two", rows))
    (text,) = found.values()
    parameters, flops = text.split("; ")
    assert parameters == "WT and FT remove 95.0 % of the parameters (20.0\u00d7 fewer), WT with a gain of 2.00 points"
    assert flops == "WT and FT remove 97.5 % of the FLOPs (40.0\u00d7 fewer)"
    for label in ("SVD", "ALDS", "PCA"):
        rows += synthetic.curve([(0.05, 0.905)], label, epochs=1)
    _, found = answer(synthetic.write_experiment(tmp_path / "five", rows))
    assert next(iter(found.values())).startswith("WT, FT, SVD and 2 more remove 95.0 % of the parameters")


@pytest.mark.parametrize(("reference_fails", "which"), [(False, "4 cells of compressed networks"), (True, "6 cells")])
def test_if_all_cells_failed_the_first_lines_say_why(
    synthetic: Any, tmp_path: Path, reference_fails: bool, which: str
) -> None:
    error = "training diverged in epoch 1: the loss became nan at learning rate 1.5. Try a smaller learning rate."
    rows = [synthetic.reference_row(0)]
    if reference_fails:
        rows = [synthetic.broken_row("Reference", net, 1.0, "failed", error) for net in (0, 1)]
    rows += [synthetic.broken_row("WT", 0, keep, "failed", error) for keep in (0.5, 0.2, 0.1)]
    rows.append(synthetic.broken_row("FT", 0, 0.1, "infeasible", "budget cannot be met"))
    text = write_report(synthetic.write_experiment(tmp_path / "all", rows), []).markdown.read_text()
    answered = text.partition("## In short")[2].partition("\n##")[0]
    assert f"all {which} in results.csv failed or are infeasible." in answered
    of = "5 of 6" if reference_fails else "3 of 4"
    assert f"reason ({of}): training diverged in epoch 1: the loss became nan at learning rate 1.5.\n" in answered
    assert "Try" not in answered
    assert "**Retraining**: startEpoch=182" in text
    assert f"**Networks**: {0 if reference_fails else 1} trained" in text
    assert "yet" not in text
    rows.append(synthetic.cell_row("ALDS", 0, 0.5, epochs=1))
    assert "**Without loss" in write_report(synthetic.write_experiment(tmp_path / "one", rows), []).markdown.read_text()


def rows_of(section: Section | None) -> list[list[str]]:
    assert section is not None
    return [list(row) for block in section.blocks if block.kind == "table" for row in block.rows]  # type: ignore[union-attr]


def test_ranking(synthetic: Any, tmp_path: Path) -> None:
    folder = experiment(synthetic, tmp_path, nets=3)
    source = read_source(folder)
    rankings = compare(folder, source.results).rankings
    first, *_ = rows_of(best_methods(rankings, LabelStyles()))
    assert first[:2] == ["0.5", "ALDS"]
    assert first[4] == "WT 0.10 (0.10 to 0.10)", "three networks that differ equally"
    text = next(b.text for b in best_methods(rankings, LabelStyles()).blocks if isinstance(b, Text))  # type: ignore[union-attr]
    assert text.endswith('Where no method is worse than the best, "(no difference shown)" follows its name.')
    pairs = rows_of(every_pair(rankings, LabelStyles()))
    assert pairs[0] == ["0.5", "ALDS", "WT", "0.10", "0.10 to 0.10", "< 0.001"]


@pytest.mark.parametrize(
    ("figures", "sentence", "row"),
    [
        (
            {"WT": 0.8, "FT": 0.8},
            "WT and FT have the same top-1 accuracy.",
            ["WT, FT (no difference shown)", numbers.MISSING, numbers.MISSING],
        ),
        (
            {"ALDS": 0.5, "WT": 0.8, "FT": 0.8},
            "WT and FT have the same top-1 accuracy and are better than ALDS.",
            ["WT, FT", numbers.MISSING, "ALDS 30.00"],
        ),
        (
            {"ALDS": None, "WT": 0.8, "FT": 0.8},
            "WT and FT have the same top-1 accuracy, but are not shown to be better than ALDS.",
            ["WT, FT (no difference shown)", "ALDS 20.00", numbers.MISSING],
        ),
    ],
)  # fmt: skip
def test_equal_methods_are_not_ordered(
    synthetic: Any, tmp_path: Path, figures: dict[str, float | None], sentence: str, row: list[str]
) -> None:
    rows = [synthetic.reference_row(net, top1=0.9) for net in range(3)]
    for label, figure in figures.items():
        for net, varied in enumerate((0.8, 0.8, 0.2)):
            rows += synthetic.curve([(0.5, varied if figure is None else figure)], label, net, epochs=1)
    folder = synthetic.write_experiment(tmp_path, rows)
    assert f"At keep ratio 0.5, {sentence}" in answer(folder)[0]
    rankings = compare(folder, read_source(folder).results).rankings
    ((_, best, _, *others),) = rows_of(best_methods(rankings, LabelStyles()))
    assert [best, *(text.partition(" (")[0] for text in others)] == row
    pairs = {(one, two): by for _, one, two, by, *_ in rows_of(every_pair(rankings, LabelStyles()))}
    assert pairs["WT", "FT"] == "equal"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"), (0.00001, "0.0 s"), (0.0312, "0.031 s"), (0.31, "0.31 s"), (1.0, "1.0 s"), (1.44, "1.4 s"),
        (9.94, "9.9 s"), (9.96, "10 s"), (10.4, "10 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h"),
        (math.nan, numbers.MISSING),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_time_and_front(synthetic: Any, tmp_path: Path) -> None:
    rows = [synthetic.reference_row(0) | {"pareto": ""}]
    rows += [row | {"pareto": "flops seconds"} for row in synthetic.curve([(0.5, 0.9)], "ALDS", epochs=3)]
    source = read_source(synthetic.write_experiment(tmp_path, rows))
    assert rows_of(time_spent(source, LabelStyles())) == [["ALDS", "0.80 s", "0.80 s", "1"]]
    ((method, keep, figure, parameters, flops, *_, time),) = rows_of(pareto_fronts(source, LabelStyles()))
    assert (method, keep, figure, flops.endswith(" *"), parameters.endswith("*"), time) == (
        "ALDS", "0.5", "90.00", True, False, "0.80 s *",
    )  # fmt: skip
