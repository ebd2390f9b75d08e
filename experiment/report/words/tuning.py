"""Tuned retraining: which values were chosen, how much they matter, and whether the lists were long enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiment.config.variants import compact
from experiment.report.document import Block, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import ReportedMetric, primary_metric
from experiment.report.results_folder import Source, read_cells
from experiment.report.results_table import compressed, variants_of
from experiment.report.words import numbers
from experiment.report.words.titles import variant_in_words

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def tuned_retraining(source: Source, styles: LabelStyles) -> Section | None:
    """One row per method and keep ratio; None where nothing was tuned."""
    frame, blocks = source.results, list[Block]()
    for variant in variants_of(frame):
        tune = source.settings_of(variant).retraining.tune
        rows = compressed(frame[frame["variant"] == variant])
        if tune is None or rows.empty:
            continue
        metric = primary_metric(rows)
        figure = f"valid_{metric.name}"
        trials = read_cells(source.folder, rows, "trials.csv", [*tune, figure, "chosen"], texts=list(tune))
        if trials.empty:  # nothing was removed, and so nothing retrained
            continue
        if len(variants_of(frame)) > 1:
            blocks.append(Text(f"Variant {variant_in_words(variant)}:"))
        blocks += _about(trials, tune, float(rows["seconds_tune"].sum()), metric, styles)
    text = (
        "Every network was retrained once with each combination of the values, from the same start. The one that is "
        "best on the validation data was kept; it alone was tested. The spread is the difference between the best and "
        "the worst trial on the validation data, mean over networks; it needs two trials that did not diverge."
    )
    return Section("Tuned retraining", [Text(text), *blocks]) if blocks else None


def _about(
    trials: DataFrame, tune: Mapping[str, Sequence[Any]], seconds: float, metric: ReportedMetric, styles: LabelStyles
) -> Iterator[Block]:
    row = ["label", "keep_target"]
    column = f"valid_{metric.name}"
    figures = trials.groupby([*row, "net", "repetition"], sort=False, dropna=False)[column]
    spreads = figures.transform("max") - figures.transform("min")
    chosen = trials.assign(spread=spreads.where(figures.transform("count") > 1))[trials["chosen"]]
    rows = []
    for (label, _), cells in chosen.groupby(row, sort=False, dropna=False):
        keep = numbers.keep(float(cells["keep_target"].iloc[0]))
        spread = numbers.spread(float(cells["spread"].mean()), math.nan, metric.unit == "fraction")
        rows.append([styles.plain(str(label)), keep, *(_counted(cells[key]) for key in tune), spread])
    unit = " (points)" if metric.unit == "fraction" else ""
    yield Table(["Method", "Keep ratio", *tune, f"Spread of {metric.title}{unit}"], rows)
    if diverged := int(trials[column].isna().sum()):
        yield Text(f"{diverged} of {len(trials)} trials of these networks diverged.")
    yield Text(f"{numbers.duration(seconds)} went into trials that were not kept.")
    yield from (Text(line) for key, values in tune.items() for line in _ends(chosen, key, values, styles))


def _counted(values: Series) -> str:
    """The chosen values, the most frequent first, with the number of networks if there are several."""
    counts = values.map(compact).value_counts(sort=False).sort_values(ascending=False, kind="stable")
    return ", ".join(f"{value} ({number})" if len(counts) > 1 else str(value) for value, number in counts.items())


def _ends(chosen: DataFrame, key: str, values: Sequence[Any], styles: LabelStyles) -> Iterator[str]:
    """Where values at an end of their list were chosen, so that better ones may lie beyond."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return
    for end, which, where in ((max(values), "largest", "above"), (min(values), "smallest", "below")):
        at_end = chosen[chosen[key].astype(float) == end]
        if len(at_end):
            labels = ", ".join(dict.fromkeys(styles.plain(str(label)) for label in at_end["label"]))
            text = f"{len(at_end)} of {len(chosen)} networks chose the {which} value of the list, {end:g} ({labels})."
            yield f"{key}: {text} Extend the list {where} it."
