"""Variants of an experiment in one plot: the effect of a single setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from experiment.errors import ConfigError
from experiment.report.label_styles import LabelStyles
from experiment.report.plots.tradeoff import plot_tradeoff
from experiment.report.primary_metric import by_metric
from experiment.report.results_table import REFERENCE, compressed, labels_of, reference_rows, tidy, variants_of
from experiment.report.words.titles import variant_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MOST_CURVES, MOST_PLOTS = 14, 6


def can_compare(results: DataFrame) -> bool:
    """Whether several variants share their reference networks, so that their curves may share a plot.

    Variants that train their own reference networks differ in those, too; those of other tasks, in their metrics.
    """
    own = reference_rows(results)
    metrics = [metric.name for metric, _ in by_metric(tidy(results))]
    shared = len(metrics) == 1 and own.groupby("net")[["cell", *metrics]].nunique().le(1).all(axis=None)
    return compressed(results)["variant"].nunique() > 1 and len(own) > 0 and bool(shared)


def comparisons(results: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """The plots that compare variants, as (label, rows): one for all labels (label ""), or one per label if crowded."""
    if not can_compare(results):
        return
    frame = tidy(results)
    labels, variants = labels_of(frame), frame["variant"].nunique()
    if len(labels) * variants <= MOST_CURVES:
        yield "", frame
    elif variants <= MOST_CURVES and len(labels) <= MOST_PLOTS:
        for label in labels:
            yield label, frame[frame["label"].isin([label, REFERENCE])]


def plot_variants(results: DataFrame, *, styles: LabelStyles | None = None, **more: Any) -> Figure:
    """Draw one curve per label and variant.

    Args:
        results: rows of results.csv.
        styles: names of labels.
        more: further arguments of `plot_tradeoff`.

    Raises: ConfigError: fewer than two variants, or they do not share their reference networks.
    """
    if not can_compare(results):
        raise ConfigError("results: expected at least two variants of the same reference networks.")
    import pandas as pd

    frame, styles, names = tidy(results), styles or LabelStyles(), {}
    parts = [frame[frame["method"] == REFERENCE]]
    for label in labels_of(frame):
        for variant in variants_of(frame):
            words = variant_in_words(variant)
            names[f"{label}, {words}"] = f"{styles.name(label)}, {words}"
            own = frame[(frame["label"] == label) & (frame["variant"] == variant)]
            parts.append(own.assign(label=f"{label}, {words}"))
    together = pd.concat([part for part in parts if len(part)]).assign(variant="")
    return plot_tradeoff(together, styles=LabelStyles(names), **more)
