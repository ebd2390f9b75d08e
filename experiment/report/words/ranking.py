"""Which method is best at every keep ratio, and which are not worse than the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from experiment.report.comparisons import ALPHA, Ranking
from experiment.report.document import Block, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.paired import Estimate
from experiment.report.primary_metric import ReportedMetric
from experiment.report.words import numbers
from experiment.report.words.titles import column_title, joined

NO_DIFFERENCE = " (no difference shown)"
MOST_PAIRS = 300  # rows of the table of pairs; comparisons.csv has all


def best_methods(found: Sequence[Ranking], styles: LabelStyles) -> Section | None:
    """One row per keep ratio: the best method, those not shown to be worse, and those worse; None without any."""
    if not found:
        return None
    blocks: list[Block] = [Text(_explanation(found))]
    for metric in dict.fromkeys(b.metric for b in found):
        unit = " (points)" if metric.unit == "fraction" else ""
        titles = "Not shown to be worse, by", "Worse than the best, by"
        header = ["Keep ratio", "Best", column_title(metric), *(title + unit for title in titles)]
        rows = [list(_row(b, styles)) for b in found if b.metric == metric]
        blocks.append(Table(header, rows, words=True))
    return Section("Which method is best", blocks)


def every_pair(found: Sequence[Ranking], styles: LabelStyles) -> Section | None:
    """The difference of every two methods at every keep ratio."""
    rows = [row for b in found for row in _pairs(b, styles)]
    if not rows:
        return None
    header = ["Keep ratio", "Method", "Compared with", "Better by", "95 % interval", "p (Holm)"]
    blocks: list[Block] = [Table(header, rows[:MOST_PAIRS], words=True)]
    if len(rows) > MOST_PAIRS:
        blocks.append(Text(f"{len(rows) - MOST_PAIRS} more are in comparisons.csv."))
    return Section("Every two methods", blocks, folded=True)


def interval(e: Estimate, metric: ReportedMetric) -> str:
    """`−0.12 to 0.84`; of fractions in percent."""
    write = _plain(metric)
    return f"{write(e.low)} to {write(e.high)}" if math.isfinite(e.low) else "unknown"


def _plain(metric: ReportedMetric) -> Callable[[float], str]:
    if metric.unit == "fraction":
        return lambda value: numbers.percent(value, 2)
    return lambda value: numbers.number_spread(value, math.nan).replace("-", numbers.MINUS)


def _row(b: Ranking, styles: LabelStyles) -> Iterator[str]:
    tied, worse = b.tied(), b.worse()
    shown = {c.label: f"{styles.plain(c.label)} {_plain(b.metric)(e.value)} ({interval(e, b.metric)})"
             for c in b.contenders if c.label not in tied and (e := b.pairs.get((tied[0], c.label)))}  # fmt: skip
    most = 1.0 if b.metric.unit == "fraction" else math.inf
    best = Estimate(b.best.value, b.best.low, min(most, b.best.high), b.best.p)
    yield joined(numbers.keep(b.keep), b.variant)
    yield joined(*map(styles.plain, tied)) + ("" if worse else NO_DIFFERENCE)
    yield f"{_plain(b.metric)(best.value)} ({interval(best, b.metric)})"
    yield "; ".join(text for label, text in shown.items() if label not in worse) or numbers.MISSING
    yield "; ".join(text for label, text in shown.items() if label in worse) or numbers.MISSING


def _pairs(b: Ranking, styles: LabelStyles) -> Iterator[list[str]]:
    for (first, second), e in b.pairs.items():
        p = b.adjusted[first, second]
        better = styles.plain(first) + ("" if e.is_zero() or p < ALPHA else NO_DIFFERENCE)
        shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
        by = "equal" if e.is_zero() else _plain(b.metric)(e.value)
        yield [joined(numbers.keep(b.keep), b.variant), better, styles.plain(second), by, interval(e, b.metric), shown]


def _explanation(found: Sequence[Ranking]) -> str:
    networks, samples = min(b.networks() for b in found), min(b.samples for b in found)
    parts = ["All methods have the same networks and test samples, so that their differences are paired."]
    most = max(len({net for c in b.contenders for net in c.figures}) for b in found)
    if most > networks:
        parts = [
            f"Compared are the networks that all methods have, {networks} of {most}, on the same test samples, so that "
            "differences are paired."
        ]
    if samples <= 1:
        parts.append("Intervals are over networks alone: the results do not have figures of single test samples.")
    elif networks > 1:
        parts.append("Intervals (95 %) are over networks and test samples.")
        if networks == 2:
            parts.append("Two networks order only methods that differ much; three or more tell more.")
    else:
        parts.append("Intervals (95 %) are over test samples: those of one network say nothing about other networks.")
    parts.append(
        "After each name stands its difference from the best, with the interval. A method is worse if Holm's p-value, "
        f"over all pairs at this keep ratio, is below {ALPHA:g}; otherwise no difference is shown. "
        "Methods named together as the best have equal means. Where no method is worse than the best, "
        f'"{NO_DIFFERENCE.strip()}" follows its name.'
    )
    return " ".join(parts)
