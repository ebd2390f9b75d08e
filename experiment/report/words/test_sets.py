"""Prune potential on every test set, with its mean and worst: how far a potential carries to other data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiment.report.document import Block, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import primary_metric
from experiment.report.prune_potential import deltas_for, prune_potential
from experiment.report.results_folder import Source
from experiment.report.words import numbers
from experiment.report.words.titles import capitalized

if TYPE_CHECKING:
    from pandas import DataFrame

MEAN, WORST = "mean", "worst"


def has_several(results: DataFrame) -> bool:
    """Whether networks were tested on more than one test set."""
    return bool(results["dataset_test"].nunique() > 1)


def comparable_rows(results: DataFrame) -> DataFrame:
    """The rows to compare over test sets: of the first variant, or of all if variants have one test set each."""
    counts = results.groupby("variant", sort=False)["dataset_test"].nunique()
    return results if (counts <= 1).all() else results[results["variant"] == counts.index[0]]


def shown_deltas(results: DataFrame) -> tuple[float, float]:
    """The two allowed losses whose potentials are shown per test set: 0.5 and 2 points after retraining."""
    deltas = deltas_for(results)
    return deltas[1], deltas[3]


def potential_per_test_set(results: DataFrame, delta: float) -> DataFrame:
    """Share of parameters removed within a loss of `delta`, against the reference network on the same test set.

    Args:
        results: rows of results.csv, as returned by `comparable_rows`.
    Returns: a row per test set, in order, a column per label.
    """
    found = prune_potential(results, delta)
    table: DataFrame = found.pivot_table("removed", "dataset_test", "label", aggfunc="mean", sort=False)
    return table


def potential_on_test_sets(source: Source, styles: LabelStyles) -> Section | None:
    """One table per allowed loss; None with a single test set."""
    results = comparable_rows(source.every_test)
    if not has_several(results):
        return None
    text = (
        "Share of parameters removed in percent at the largest reduction whose loss, against the reference network on "
        "the same test set, is at most that in the header; then the mean and the worst of all test sets. All networks "
        "are the same; the other sections are about the first test set."
    )
    blocks: list[Block] = [Text(text)]
    for delta in shown_deltas(results):
        table = potential_per_test_set(results, delta)
        rows = [
            [str(name), *map(numbers.percent, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)
        ]
        for name, summary in ((MEAN, table.mean()), (WORST, table.min())):
            rows.append([name, *map(numbers.percent, summary)])
        header = [capitalized(primary_metric(results).limit(delta)), *(styles.plain(str(label)) for label in table)]
        blocks.append(Table(header, rows, footer=2))
    return Section("Prune potential per test set", blocks)
