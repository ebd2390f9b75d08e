"""Which layers to leave whole, from the loss when each of them alone is compressed."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

import yaml

from experiment.report.document import Block, Code, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import ReportedMetric, primary_metric
from experiment.report.results_folder import Source
from experiment.report.results_table import references, variants_of
from experiment.report.sensitivity import LOSS, MOST_PARAMETERS, middle_keep, ranking, read_sensitivity
from experiment.report.words import numbers
from experiment.report.words.titles import capitalized, joined

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_ROWS = 10


def layers_to_leave_whole(source: Source, styles: LabelStyles) -> Section | None:
    """For every label the layers that cost most alone, and a line that leaves them whole."""
    blocks: list[Block] = []
    for variant in variants_of(source.results):
        results = source.results[source.results["variant"] == variant]
        rows, metric = read_sensitivity(source, variant), primary_metric(results)
        if len(rows):
            blocks += [] if blocks else [Text(_rule(metric, rows["samples"].max()))]
        for label, own in rows.groupby("label", sort=False):
            name, measured = joined(styles.plain(str(label)), variant), own[own["loss"].notna()]
            if measured.empty:
                blocks.append(Text(f"{name}: not measured: {str(own['note'].iloc[0]).rstrip('.')}."))
            else:
                blocks += _ranked(name, measured, float(references(results)["parameters"].iloc[0]), metric)
    return Section("Layers to leave whole", blocks) if blocks else None


def _rule(metric: ReportedMetric, samples: int) -> str:
    return (
        "Each layer alone is compressed, all others stay whole, and nothing is retrained. From the top, leave those "
        f"whole that cost more than {100 * LOSS:g} {metric.step.removesuffix('s')}, as long as they hold at most "
        f"{MOST_PARAMETERS:.0%} of the parameters together: the other layers must shrink more for them. Larger ones "
        "are passed over. Layers in one row only lose the same channels together; the parameters of filters include "
        "those that read their channels, so that shares may add up to more than 100 %. The figures are those of "
        f"{samples:,} validation images: a few images more or less are noise."
    )


def _ranked(name: str, rows: DataFrame, parameters: float, metric: ReportedMetric) -> list[Block]:
    table = ranking(rows, parameters)
    column = f"{capitalized(metric.worsening)} at keep {numbers.keep(middle_keep(list(rows['keep'])))} ({metric.step})"
    body = [
        [
            layers.replace(" ", ", "),
            numbers.percent(loss, 2),
            numbers.percent(size / parameters),
            "yes" if own else "no",
        ]
        for layers, loss, size, own in table.head(MOST_ROWS).itertuples(index=False)
    ]
    shown = Table([f"{name}: layer", column, "Parameters (%)", "Leave whole"], body)
    chosen = [glob.escape(layer) for layers in table.loc[table["whole"], "layers"] for layer in layers.split(" ")]
    if not chosen:
        return [shown, Text(f"{name}: no layer is worth leaving whole.")]
    line = yaml.safe_dump({"ignore": chosen}, default_flow_style=None, width=10**6).strip()
    return [shown, Text(f"In the settings of {name}:"), Code(line, "yaml")]
