"""Tables of prune potential: for reports, in Markdown and in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiment import escaping
from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import by_metric, primary_metric
from experiment.report.prune_potential import ROUNDING, Per, deltas_for, prune_potentials
from experiment.report.results_table import SETTING, references, tidy
from experiment.report.words import numbers

if TYPE_CHECKING:
    from pandas import DataFrame, Series

BOLD_WITHIN = 0.005  # shares this close to the best one are bold, too


def markdown_table(
    results: DataFrame, quantity: str = "parameters", deltas: Sequence[float] | None = None, per: Per = "mean",
    styles: LabelStyles | None = None,
) -> str:  # fmt: skip
    """The prune potential as a Markdown table: one row per label, one column per delta, shares removed in percent.

    Args:
        results, quantity, per: as in `prune_potential`.
        deltas: allowed losses of top1, as fractions; by default `deltas_for(results)`.
        styles: names of labels.
    """
    header, rows = potential_rows(results, quantity, deltas, per, styles or LabelStyles())
    lines = [[escaping.markdown(cell) for cell in cells] for cells in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def potential_rows(
    results: DataFrame, quantity: str, deltas: Sequence[float] | None, per: Per, styles: LabelStyles
) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table, without columns whose rows are all the same."""
    deltas = deltas_for(results) if deltas is None else deltas
    tables = prune_potentials(results, deltas, quantity, per)
    shown = [c for c in ("network", "dataset", "variant") if tables and tables[0][c].nunique() > 1]
    metrics = [metric for metric, _ in by_metric(tidy(results))]
    levels = [" or ".join(dict.fromkeys(metric.limit(delta) for metric in metrics)) for delta in deltas]
    rows = []
    for index in range(len(tables[0]) if tables else 0):
        row = tables[0].iloc[index]
        cells = [_potential_cell(table.iloc[index], per) for table in tables]
        rows.append([*(str(row[c]) or "unchanged" for c in shown), styles.plain(str(row["label"])), *cells])
    return [*(c.capitalize() for c in shown), "Method", *levels], rows


def _potential_cell(row: Series, per: Per) -> str:
    removed = float(row["removed"])
    if math.isnan(removed):
        return numbers.MISSING
    mark = "" if row["complete"] else " †"
    if per == "net":
        return numbers.percent_spread(removed, float(row["removed_std"]), 1) + mark
    return f"{numbers.percent(removed)} ({numbers.factor(1 - removed)}){mark}" if removed > 0 else "0.0"


def latex_table(results: DataFrame, deltas: Sequence[float] | None = None, styles: LabelStyles | None = None) -> str:
    """The prune potential as a LaTeX table (package booktabs): one row per network and method.

    For every delta: the change of the primary metric (top1), and the percentages of parameters (CR-P) and FLOPs (CR-F)
    removed at the point of the largest CR-P within delta on the mean curve. The change is omitted if nothing is
    removed. Shares within half a percentage point of the column's best are bold.

    Args:
        results: rows of results.csv, of one or several experiments.
        deltas: allowed losses of top1, as fractions; by default `deltas_for(results)`.
        styles: names of labels.
    """
    deltas = deltas_for(results) if deltas is None else deltas
    count, styles = len(deltas), styles or LabelStyles()
    frame = tidy(results)
    metrics = [metric for metric, _ in by_metric(frame)]
    name = escaping.latex(metrics[0].name) if len(metrics) == 1 else ""
    loss = " or ".join(dict.fromkeys(metric.worsening for metric in metrics))
    steps = ", ".join(f"{metric.name}: change in {metric.step}" for metric in metrics)
    lines = [
        "% format 1",
        f"% needs \\usepackage{{booktabs}}; CR-P, CR-F: parameters, FLOPs removed in percent; {steps}",
        f"\\begin{{tabular}}{{ll{'rrr' * count}}}",
        "\\toprule",
        " & ".join(["", "", *(f"\\multicolumn{{3}}{{c}}{{{loss} $\\leq$ {100 * d:g}\\%}}" for d in deltas)]) + r" \\",
        " ".join(f"\\cmidrule(lr){{{3 + 3 * i}-{5 + 3 * i}}}" for i in range(count)),
        " & ".join(["Network", "Method", *([f"$\\Delta${name}", "CR-P", "CR-F"] * count)]) + r" \\",
    ]
    tables = prune_potentials(results, deltas)
    for _, block in tables[0].groupby(SETTING, sort=False) if tables else ():
        lines.append("\\midrule")
        own = frame[(frame[SETTING] == block.iloc[0][SETTING]).all(axis=1)]
        lines += _latex_block([table.loc[block.index] for table in tables], own, styles)
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _latex_name(results: DataFrame) -> str:
    first, metric, own = results.iloc[0], primary_metric(results), references(results)
    value = float(own[metric.name].mean()) if len(own) else math.nan
    accuracy = f" ({numbers.spread(value, math.nan, metric.unit == 'fraction')})" if len(own) else ""
    variant = f", {first['variant']}" if first["variant"] else ""
    dataset = f" {first['dataset']}" if first["dataset"] else ""
    return escaping.latex(f"{first['network']}{dataset}{variant}") + accuracy


def _latex_block(tables: list[DataFrame], results: DataFrame, styles: LabelStyles) -> list[str]:
    """The rows of one setting, `results`."""
    lines, name, metric = [], _latex_name(results), primary_metric(results)
    for place in range(len(tables[0])):
        cells = [name if place == 0 else "", styles.latex(str(tables[0].iloc[place]["label"]))]
        for table in tables:
            row = table.iloc[place]
            change = numbers.change(float(metric.difference(row[metric.reference], row[metric.name])))
            cells.append(_latex_number(change if row["removed"] > 0 else numbers.MISSING))
            for column in ("keep_parameters", "keep_flops"):
                cells.append(_latex_share(1 - float(row[column]), best=1 - float(table[column].min())))
        lines.append(" & ".join(cells) + r" \\")
    return lines


def _latex_share(removed: float, best: float) -> str:
    number = _latex_number(numbers.percent(removed, 2))
    return f"\\textbf{{{number}}}" if removed > 0 and removed >= best - BOLD_WITHIN - ROUNDING else number


def _latex_number(number: str) -> str:
    return "--" if number == numbers.MISSING else number.replace(numbers.MINUS, "$-$")
