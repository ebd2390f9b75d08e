"""Prune potential: the largest share that a method removes while the accuracy drops by no more than delta."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from experiment import escaping
from experiment.errors import ConfigError
from experiment.report.mean_and_spread import GROUP, SETTING, compressed, keep_column, prune_only, references, summarize
from experiment.report.plots.label_styles import Naming
from experiment.report.results_folder import REFERENCE, tidy
from experiment.report.words import numbers

if TYPE_CHECKING:
    from pandas import DataFrame, Series

DELTAS_RETRAINED = (0.0, 0.005, 0.01, 0.02, 0.03)
DELTAS_PRUNE_ONLY = (0.01, 0.05, 0.1, 0.2, 0.3)
BOLD_WITHIN = 0.005  # shares this close to the best one count as best
_ROUNDING = 1e-9  # far below one test image, far above the error of 0.9 - 0.895

AVERAGES = ["removed", "keep_parameters", "keep_flops", "top1", "top1_reference"]


def deltas_for(results: DataFrame) -> tuple[float, ...]:
    """The losses of accuracy that tables show: small ones after retraining, larger ones where nothing was retrained."""
    return DELTAS_PRUNE_ONLY if prune_only(results) else DELTAS_RETRAINED


def prune_potential(
    results: DataFrame, delta: float, quantity: str = "parameters", per: Literal["net", "mean"] = "mean"
) -> DataFrame:
    """The largest achieved 1 - keep with top1_reference - top1 <= delta, for every label of every setting.

    The largest share that satisfies counts, also where a smaller one does not (accuracy need not be monotone). Where
    none satisfies it is 0: the reference network itself, which removes nothing, loses nothing.

    Args:
        results: rows of results.csv, of one or of several experiments.
        delta: allowed loss of top1, a share: 0.005 is half a point.
        quantity: parameters, flops, flops_unmasked, or bytes (of the values alone, in their own bits).
        per: `mean` averages accuracy and size over networks and repetitions at every keep ratio first, then searches
            that one curve; `net` searches the curve of every network and repetition, then averages what was found.

    Returns: one row a label: dataset, dataset_test, network, variant, method, label, quantity, delta, removed,
        keep_target (of the point, `mean` only), keep_parameters, keep_flops, top1, top1_reference, each average c also
        with c_std (NaN for one cell), cells (how many were averaged), complete. A label without a finished cell has
        NaN and cells 0.

    Raises: ConfigError: delta is negative, or quantity or per is unknown.
    Source: METHODS "Lost in Pruning", Liebenwein et al. 2021, https://arxiv.org/abs/2103.03014 (definition `net`).
    """
    return prune_potentials(results, [delta], quantity, per)[0]


def prune_potentials(
    results: DataFrame, deltas: Sequence[float], quantity: str = "parameters", per: Literal["net", "mean"] = "mean"
) -> list[DataFrame]:
    """`prune_potential` at several deltas: equal rows in equal order, the results summarised once."""
    if per not in ("net", "mean"):
        raise ConfigError(f"per: must be net or mean. Got {per!r}.")
    column = keep_column(quantity)
    labels, points = _every_label(results), _mean_points(results, column) if per == "mean" else _points(results, column)
    tables = []
    for delta in deltas:
        if not delta >= 0:
            raise ConfigError(f"delta: must be a share of at least 0, such as 0.005. Got {delta}.")
        found = _best_points(points, GROUP, delta) if per == "mean" else _average_best(points, delta)
        table = labels.merge(found, on=GROUP, how="left")
        table["cells"] = table["cells"].astype(float).fillna(0).astype(int)
        table["complete"] = table["complete"].eq(True)
        table.insert(len(GROUP), "quantity", quantity)
        table.insert(len(GROUP) + 1, "delta", float(delta))
        tables.append(table)
    return tables


def _every_label(results: DataFrame) -> DataFrame:
    frame = tidy(results)
    return frame.loc[frame["method"] != REFERENCE, GROUP].drop_duplicates().reset_index(drop=True)


def _mean_points(results: DataFrame, column: str) -> DataFrame:
    points = summarize(results)
    points = points.assign(removed=1 - points[column], removed_std=points[f"{column}_std"])
    averages = [f"{name}{end}" for name in AVERAGES for end in ("", "_std")]
    return points[[*GROUP, "keep_target", *averages, "cells", "complete"]]


def _points(results: DataFrame, column: str) -> DataFrame:
    cells = compressed(results)
    cells = cells.assign(removed=1 - cells[column], cells=1, complete=True)
    return cells[[*GROUP, "net", "repetition", "keep_target", *AVERAGES, "cells", "complete"]]


def _average_best(points: DataFrame, delta: float) -> DataFrame:
    curve = [*GROUP, "net", "repetition"]
    best = _best_points(points, curve, delta)
    grouped = best.groupby(GROUP, sort=False)
    spreads = grouped[AVERAGES].std().add_suffix("_std")
    found = grouped[AVERAGES].mean().join(spreads).assign(cells=grouped.size(), keep_target=math.nan).reset_index()
    lengths = points.groupby(curve, sort=False).size().groupby(GROUP, sort=False)
    even = found.merge((lengths.max() == lengths.min()).rename("even").reset_index(), on=GROUP)["even"]
    return found.assign(complete=even & (found["cells"] == found.groupby(SETTING)["cells"].transform("max")))


def _best_points(points: DataFrame, curve: list[str], delta: float) -> DataFrame:
    """Of every curve the point that removes most within delta, or the reference's own point."""
    import pandas as pd

    drop = points["top1_reference"] - points["top1"]
    allowed = points[(drop <= delta + _ROUNDING) & (points["removed"] > 0)]
    best = allowed.sort_values(["removed", "top1"], ascending=False, kind="stable").drop_duplicates(curve)
    rest = points.drop_duplicates(curve).merge(best[curve], on=curve, how="left", indicator=True)
    rest = rest[rest["_merge"] == "left_only"].drop(columns="_merge")
    unpruned = {"removed": 0.0, "keep_parameters": 1.0, "keep_flops": 1.0, "keep_target": 1.0}
    spreads = {name: 0.0 for name in rest.columns if str(name).endswith("_std") and name != "top1_reference_std"}
    rest = rest.assign(**unpruned, **spreads, top1=rest["top1_reference"])
    if "top1_std" in rest:
        rest = rest.assign(top1_std=rest["top1_reference_std"])
    return pd.concat([part for part in (best, rest) if len(part)] or [points]).reset_index(drop=True)


def markdown_table(
    results: DataFrame, quantity: str = "parameters", deltas: Sequence[float] | None = None,
    per: Literal["net", "mean"] = "mean", names: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """The prune-potential table as Markdown text: a row a label, a column a delta, shares removed in percent."""
    header, rows = potential_rows(results, quantity, deltas, per, Naming(names or {}))
    lines = [[escaping.markdown(cell) for cell in header], ["---"] * len(header)]
    lines += [[escaping.markdown(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def potential_rows(
    results: DataFrame, quantity: str, deltas: Sequence[float] | None, per: Literal["net", "mean"], naming: Naming
) -> tuple[list[str], list[list[str]]]:
    """Header and body of the prune-potential table in words, without columns that say the same in every row."""
    deltas = deltas_for(results) if deltas is None else deltas
    tables = prune_potentials(results, deltas, quantity, per)
    shown = [c for c in ("network", "dataset", "variant") if tables and tables[0][c].nunique() > 1]
    header = [
        *(c.capitalize() for c in shown),
        "Method",
        *(f"loss ≤ {numbers.level(delta)} points" for delta in deltas),
    ]
    rows = []
    for index in range(len(tables[0]) if tables else 0):
        row = tables[0].iloc[index]
        cells = [_potential_cell(table.iloc[index], per) for table in tables]
        rows.append([*(str(row[c]) or "unchanged" for c in shown), naming.plain(str(row["label"])), *cells])
    return header, rows


def _potential_cell(row: Series, per: str) -> str:
    removed = float(row["removed"])
    if math.isnan(removed):
        return numbers.MISSING
    mark = "" if row["complete"] else " †"
    if per == "net":
        return numbers.percent_spread(removed, float(row["removed_std"]), 1) + mark
    return f"{numbers.percent(removed)} ({numbers.factor(1 - removed)}){mark}" if removed > 0 else "0.0"


def latex_table(
    results: DataFrame, deltas: Sequence[float] | None = None, names: Mapping[str, str] | None = None
) -> str:
    """The prune-potential table for a paper: rows network x method; per delta the change of top1, CR-P and CR-F.

    CR-P and CR-F are the percentages of parameters and FLOPs removed at the point of the largest CR-P within delta on
    the mean curve; where none of the method's networks is within delta and smaller, the change is left out. Shares
    within half a point of the column's best are bold. Needs the package booktabs.
    """
    deltas = deltas_for(results) if deltas is None else deltas
    naming = Naming(names or {})
    count = len(deltas)
    lines = [
        "% format 1",
        "% needs \\usepackage{booktabs}; CR-P, CR-F: parameters, FLOPs removed in percent; top1: change in points",
        f"\\begin{{tabular}}{{ll{'rrr' * count}}}",
        "\\toprule",
        " & ".join(["", "", *(f"\\multicolumn{{3}}{{c}}{{loss $\\leq$ {100 * d:g}\\%}}" for d in deltas)]) + r" \\",
        " ".join(f"\\cmidrule(lr){{{3 + 3 * i}-{5 + 3 * i}}}" for i in range(count)),
        " & ".join(["Network", "Method", *(["$\\Delta$top1", "CR-P", "CR-F"] * count)]) + r" \\",
    ]
    tables = prune_potentials(results, deltas)
    blocks = list(tables[0].groupby(SETTING, sort=False)) if tables else []
    for _, block in blocks:
        lines.append("\\midrule")
        lines += _latex_block([table.loc[block.index] for table in tables], _latex_name(results, block), naming)
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _latex_name(results: DataFrame, block: DataFrame) -> str:
    first = block.iloc[0]
    reference = references(results)
    own = reference[(reference[SETTING] == first[SETTING]).all(axis=1)]
    accuracy = f" ({numbers.percent(float(own['top1'].mean()), 2)})" if len(own) else ""
    variant = f", {first['variant']}" if first["variant"] else ""
    dataset = f" {first['dataset']}" if first["dataset"] else ""
    return escaping.latex(f"{first['network']}{dataset}{variant}") + accuracy


def _latex_block(tables: list[DataFrame], name: str, naming: Naming) -> list[str]:
    lines = []
    for place in range(len(tables[0])):
        cells = [name if place == 0 else "", naming.latex(str(tables[0].iloc[place]["label"]))]
        for table in tables:
            row = table.iloc[place]
            change = numbers.change(float(row["top1"] - row["top1_reference"]))
            cells.append(_latex_number(change if row["removed"] > 0 else numbers.MISSING))
            for column in ("keep_parameters", "keep_flops"):
                best = 1 - float(table[column].min())
                cells.append(_latex_share(1 - float(row[column]), best))
        lines.append(" & ".join(cells) + r" \\")
    return lines


def _latex_share(removed: float, best: float) -> str:
    number = _latex_number(numbers.percent(removed, 2))
    return f"\\textbf{{{number}}}" if removed > 0 and removed >= best - BOLD_WITHIN - _ROUNDING else number


def _latex_number(number: str) -> str:
    return "--" if number == numbers.MISSING else number.replace(numbers.MINUS, "$-$")


def smallest_within(results: DataFrame, delta: float) -> Series | None:
    """The row of the smallest compressed network that loses at most delta of top1; the most accurate one if none does.

    Returns: a row of results.csv, or None where no compressed network is done. `Fake` is no compressed network.
    """
    cells = compressed(results)
    cells = cells[(cells["method"] != "Fake") & cells["top1"].notna()]
    if cells.empty:
        return None
    good = cells[cells["top1_reference"] - cells["top1"] <= delta + _ROUNDING]
    ordered = good.sort_values("keep_parameters") if len(good) else cells.sort_values("top1", ascending=False)
    return ordered.iloc[0]
