"""Comparisons of methods in an experiment's folder against paired differences of the values that it was made of."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.report import Source, read_source
from experiment.report.comparisons import COLUMNS, Contender, Ranking, as_table, compare
from experiment.report.paired import Estimate, between_networks, holm, paired_difference
from experiment.report.primary_metric import ReportedMetric

SKILLS = {"Reference": 2.0, "WT": 1.9, "FT": 1.88, "SVD": 0.4}
SAMPLES = 800


def right_answers(label: str, net: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    shared = np.random.default_rng(0).normal(0, 1, SAMPLES)
    return SKILLS[label] + shared + np.random.default_rng([net, len(label), ord(label[0])]).normal(0, 0.5, SAMPLES) > 0


def source_of(synthetic: Any, folder: Path, nets: int, *, samples: bool = True) -> Source:
    """WT, FT and SVD at keep ratio 0.5, with right answers of random networks."""
    rows = synthetic.grid(("WT", "FT", "SVD"), nets, (0.5,))
    for row in rows:
        row["top1"] = float(right_answers(row["label"], row["net"]).mean())
        row["top1_reference"] = float(right_answers("Reference", row["net"]).mean())
    synthetic.write_experiment(folder, rows, cells=True)
    for row in rows if samples else ():
        place = next((folder / "cells").glob(f"*-{row['cell']}"))
        np.savez_compressed(place / "samples.npz", figures=right_answers(row["label"], row["net"]))
    return read_source(folder)


def only_ranking(source: Source) -> Ranking:
    (ranking,) = compare(source.folder, source.results).rankings
    return ranking


@pytest.mark.parametrize("nets", [1, 3])
def test_pairs(synthetic: Any, tmp_path: Path, nets: int) -> None:
    ranking = only_ranking(source_of(synthetic, tmp_path, nets))
    assert [c.label for c in ranking.contenders] == ["WT", "FT", "SVD"], "the best first"
    answers = {label: np.array([right_answers(label, net) for net in range(nets)], float) for label in SKILLS}
    usual = np.median([between_networks(answers[first], answers[second]) for first, second in ranking.pairs])
    for (first, second), found in ranking.pairs.items():
        assert found == paired_difference(answers[first], answers[second], usual)
    assert list(ranking.adjusted.values()) == holm([e.p for e in ranking.pairs.values()])
    assert ranking.worse() == ["SVD"]
    table = as_table([ranking])
    assert tuple(table.columns) == COLUMNS
    assert set(table["networks"]) == {nets}
    assert set(table["samples"]) == {SAMPLES}
    assert table.loc[1, "difference"] == pytest.approx(answers["WT"].mean() - answers["SVD"].mean())


def test_losses_are_paired_with_the_reference(synthetic: Any, tmp_path: Path) -> None:
    source = source_of(synthetic, tmp_path, 2)
    found = compare(source.folder, source.results).losses
    reference, own = (np.array([right_answers(n, net) for net in (0, 1)], float) for n in ("Reference", "SVD"))
    assert found["", "SVD", 0.5] == paired_difference(reference, own)


def test_without_samples_only_networks_are_compared(synthetic: Any, tmp_path: Path) -> None:
    """As in results of earlier versions: of one network, nothing is ordered."""
    ranking = only_ranking(source_of(synthetic, tmp_path / "three", 3, samples=False))
    figures = {label: np.array([[right_answers(label, net).mean()] for net in range(3)]) for label in SKILLS}
    usual = np.median([between_networks(figures[first], figures[second]) for first, second in ranking.pairs])
    assert ranking.pairs["WT", "SVD"] == paired_difference(figures["WT"], figures["SVD"], usual)
    alone = only_ranking(source_of(synthetic, tmp_path / "one", 1, samples=False))
    assert alone.worse() == []
    assert math.isinf(alone.pairs["WT", "SVD"].high)


def test_damaged_samples_are_as_good_as_none(synthetic: Any, tmp_path: Path, caplog: Any) -> None:
    source = source_of(synthetic, tmp_path, 3)
    for path in tmp_path.glob("cells/FT-*/samples.npz"):
        path.write_bytes(b"no archive")
    ranking = only_ranking(source)
    assert "samples.npz" in caplog.text
    assert ranking.pairs["WT", "FT"].value == pytest.approx(
        np.mean([right_answers("WT", net).mean() - right_answers("FT", net).mean() for net in range(3)])
    )


def test_lower_is_better(synthetic: Any, tmp_path: Path) -> None:
    """The same values as perplexities: the order turns, and a loss is a share of the reference's figure."""
    rows = synthetic.grid(("WT", "FT", "SVD"), 2, (0.5,))
    for row in rows:
        value = 3.0 + right_answers(row["label"], row["net"]).mean()
        reference = 3.0 + right_answers("Reference", row["net"]).mean()
        row |= {"perplexity": value, "perplexity_reference": reference, "primary": "perplexity", "better": "lower",
                "unit": "value", "perplexity_before_retraining": value}  # fmt: skip
    source = read_source(synthetic.write_experiment(tmp_path, rows))
    found = compare(source.folder, source.results)
    assert [c.label for c in found.rankings[0].contenders] == ["SVD", "FT", "WT"]
    assert found.rankings[0].pairs["SVD", "WT"].value > 0
    means = {label: 3 + np.mean([right_answers(label, net).mean() for net in (0, 1)]) for label in SKILLS}
    assert found.losses["", "SVD", 0.5].value == pytest.approx((means["SVD"] - means["Reference"]) / means["Reference"])


def test_cells_to_compare(synthetic: Any, tmp_path: Path) -> None:
    """Failed cells, the control Fake, and a single method have nothing to compare."""
    rows = [synthetic.reference_row(0), synthetic.cell_row("WT", 0, 0.5), synthetic.cell_row("Fake", 0, 0.5)]
    rows.append(synthetic.broken_row("FT", 0, 0.5, "failed", "no"))
    source = read_source(synthetic.write_experiment(tmp_path, rows))
    assert list(compare(source.folder, source.results).rankings) == []
    assert as_table([]).empty


def test_of_equal_methods_all_must_be_better() -> None:
    """WT and FT are equal but for rounding; PCA is worse than both, SVD is shown to be worse than WT alone."""
    names = ("WT", "FT", "SVD", "PCA")
    pairs = {pair: Estimate(0.1, 0.0, 0.2, 0.01) for pair in itertools.combinations(names, 2)}
    pairs["WT", "FT"] = Estimate((0.1 + 0.2) - 0.3, -0.1, 0.1, 1.0)
    adjusted = {pair: 1.0 if pair in (("WT", "FT"), ("FT", "SVD")) else 0.01 for pair in pairs}
    contenders = [Contender(name, {0.0: 0.5}, {}) for name in names]
    ranking = Ranking("", 0.5, ReportedMetric(), contenders, Estimate(0.5, 0.4, 0.6, 0.0), pairs, adjusted, 1)
    assert ranking.tied() == ["WT", "FT"]
    assert ranking.worse() == ["PCA"]
