"""The answer of a report in sentences: how far the network can be compressed, with which method, and what is not known.

Every sentence comes from the results; what they do not tell is not said.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiment.report.comparisons import ALPHA, Comparisons, Place, Ranking, place_of
from experiment.report.deployments import BYTES, FIGURE, TORCH, costs_of, deployments, runtimes_of
from experiment.report.document import Block, Items, Section, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.paired import Estimate
from experiment.report.primary_metric import ReportedMetric, by_metric
from experiment.report.prune_potential import (
    ROUNDING,
    deltas_for,
    deployed_loss,
    prune_potentials,
    smallest_within,
)
from experiment.report.results_folder import Source
from experiment.report.results_table import REFERENCE, compressed, counts_bytes, prune_only, references, variants_of
from experiment.report.words import numbers, titles
from experiment.report.words.settings import all_settings

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Losses = Mapping[Place, Estimate]
CLOSE = 0.02  # shares removed that differ by less are named together
LARGE = 0.02  # a gain over the uncompressed network that is told unless its interval contains 0
ENDED = {"failed": "failed", "infeasible": "are infeasible"}  # what cells of a status did
LONGEST_REASON = 160  # characters


class _Known(NamedTuple):
    source: Source
    rows: DataFrame
    metric: ReportedMetric
    losses: Losses
    rankings: Sequence[Ranking]
    styles: LabelStyles


def in_short(source: Source, found: Comparisons, styles: LabelStyles) -> Section | None:
    """The first section of a report; None if no compressed network is finished, unless all failed."""
    if compressed(source.results).empty:
        return _all_failed(source.results)
    metric, rows = next(by_metric(source.results))
    rankings = [b for b in found.rankings if b.metric == metric]
    known = _Known(source, rows, metric, found.losses, rankings, styles)
    blocks: list[Block] = [Text(_start(known)), Items(list(_reductions(known)))]
    blocks += _gains(known)
    blocks.append(Text(" ".join([*_order(known), *_time(known), *_deploy(known)])))
    blocks.append(Text("Not compared: " + "; ".join(_not_compared(known)) + "."))
    return Section("In short", blocks)


def _all_failed(results: DataFrame) -> Section | None:
    """That there is no answer, and why; None if some cells may still give one."""
    own = results[results["method"] != REFERENCE]
    cells, which = (own, " of compressed networks") if "done" in set(results["status"]) else (results, "")
    if cells.empty:
        return None
    verbs = [verb for status, verb in ENDED.items() if status in set(cells["status"])]
    reasons = cells["error"].str.partition(". ")[0].str.rstrip(".").value_counts()
    reason = textwrap.shorten(str(reasons.index[0]), LONGEST_REASON, placeholder=" ...") or "not recorded"
    number = len(cells)
    text = (
        f"How far can {titles.network_on_dataset(results)} be compressed? That is not known: "
        f"{f'all {number} cells' if number > 1 else 'the only cell'}{which} in results.csv {' or '.join(verbs)}. "
        f"The most frequent reason ({reasons.iloc[0]} of {number}): {reason}."
    )
    return Section("In short", [Text(text)])


def _start(known: _Known) -> str:
    variant, *others = variants_of(known.rows)
    rows, metric = known.rows[known.rows["variant"] == variant], known.metric
    found = references(rows)
    mode = titles.mode_in_words(all_settings(known.source))
    nets = f"{len(found)} networks" if len(found) > 1 else "one network"
    figure = numbers.spread(found[metric.name].mean(), found[metric.name].std(), metric.unit == "fraction")
    unit = " %" if metric.unit == "fraction" else ""
    of_variant = f" (variant {titles.variant_in_words(variant)})" if others else ""
    return (
        f"How far can {titles.network_on_dataset(rows)} be compressed? The answer from {nets} "
        f"({titles.joined(mode, titles.retraining_in_words(known.rows))}); uncompressed{of_variant}, {metric.title} is "
        f"{figure}{unit} with {numbers.whole(found['parameters'].mean())} parameters."
    )


def _reductions(known: _Known) -> Iterator[tuple[str, str]]:
    """The largest reductions, by allowed loss; losses that allow the same are named together."""
    deltas = deltas_for(known.rows)[:4]
    quantities = ["parameters", "flops", *(["bytes"] if counts_bytes(known.rows) else [])]
    tables = {quantity: prune_potentials(known.rows, deltas, quantity) for quantity in quantities}
    texts = [_reduction(known, {quantity: found[i] for quantity, found in tables.items()}) for i in range(len(deltas))]
    for text, same in itertools.groupby(zip(texts, deltas, strict=True), key=lambda pair: pair[0]):
        yield titles.capitalized(_allowed(known.metric, *(delta for _, delta in same))), text


def _allowed(metric: ReportedMetric, *deltas: float) -> str:
    """`without loss`, `within 0.5 points`, `without loss, and within 0.5 and 1 points`."""
    some = [delta for delta in deltas if delta]
    within = [f"within {metric.steps(*some)}"] if some else []
    return ", and ".join([*([] if all(deltas) else [f"without {metric.worsening}"]), *within])


def _reduction(known: _Known, tables: Mapping[str, DataFrame]) -> str:
    """The largest reduction of every quantity, with the loss there; `tables` are prune potentials."""
    texts, told = [], set[Place]()
    for quantity, table in tables.items():
        if found := _most_removed(known, table, quantity):
            best, text, whose = found
            place = place_of(best["variant"], best["label"], best["keep_target"])
            loss = known.losses.get(place)
            more = f", {whose}{_loss(known.metric, loss)}" if loss is not None and place not in told else ""
            texts.append(text + more)
            told.add(place)
    return "; ".join(texts) or "no method removes anything"


def _most_removed(known: _Known, table: DataFrame, quantity: str) -> tuple[Series, str, str] | None:
    """The point of the method that removes most, how it reads, and whose loss follows; None if none removes anything.

    Of methods that remove the same but for rounding, it is the one with the best figure. Others are named before the
    amount if theirs reads the same, else with their own: the text orders only what its numbers order.
    """
    table = table[(table["removed"] > 0) & (table["method"] != "Fake")]
    if table.empty:
        return None
    table = table.assign(rounded=table["removed"].round(2), shown=table["removed"].map(numbers.percent))
    ranked = ["rounded", known.metric.name]
    table = table.sort_values(ranked, ascending=[False, not known.metric.falls], kind="stable")
    best = table.iloc[0]
    same = table[table["shown"] == best["shown"]]
    close = table[(best["removed"] - table["removed"] < CLOSE) & (table["shown"] != best["shown"])]
    names = [_name(known, row) for _, row in same.iterrows()]
    others = [f"{_name(known, row)} {row['shown']} %" for _, row in close.iloc[:2].iterrows()]
    named = titles.and_joined([*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])])
    amount = (
        f"{best['shown']} % of the {titles.QUANTITIES[quantity]} ({numbers.factor(1 - same['removed'].min())} fewer)"
    )
    text = f"{named} remove{'s' if len(names) == 1 else ''} {titles.and_joined([amount, *others])}"
    return best, text, f"{names[0]} " if len(names) + len(others) > 1 else ""


def _loss(metric: ReportedMetric, loss: Estimate) -> str:
    """`with a loss of 0.31 points (95 % interval −0.20 to 0.82)`; negative losses are gains."""
    word, value, low, high = metric.worsening, loss.value, loss.low, loss.high
    if value < 0:
        word, value, low, high = "gain" if metric.falls else "decrease", -value, -high, -low
    text = f"with {'an' if word == 'increase' else 'a'} {word} of {numbers.percent(value, 2)} {metric.step}"
    if not math.isfinite(high):
        return text
    return f"{text} (95 % interval {numbers.percent(low, 2)} to {numbers.percent(high, 2)})"


def _gains(known: _Known) -> Iterator[Text]:
    """A warning if compressed networks are better than the uncompressed one: large gains, and those beyond chance."""
    own = variants_of(known.rows)
    losses = [loss for (variant, *_), loss in known.losses.items() if variant in own]
    large = (e for e in losses if e.value < -LARGE and not 0 <= e.high < math.inf)
    certain = (e for e in losses if e.value < 0 and e.p * len(losses) < ALPHA)
    if gains := [-e.value for e in (*large, *certain)]:
        yield Text(
            f"Warning: compressed networks are up to {numbers.percent(max(gains), 2)} {known.metric.step} better than "
            "the uncompressed one. If more training improves that one as well, losses are understated."
        )


def _name(known: _Known, row: Series) -> str:
    return titles.joined(known.styles.quoted(str(row["label"])), str(row["variant"]))


def _at(keep: float, variant: str = "") -> str:
    """` at keep ratio 0.2`; nothing if the method decides its size."""
    return "" if math.isnan(keep) else f" at keep ratio {titles.joined(numbers.keep(keep), variant)}"


def _order(known: _Known) -> Iterator[str]:
    """Which methods are best at the smallest keep ratio, and where one is better than all others."""
    if not known.rankings:
        return
    quoted, several = known.styles.quoted, len(variants_of(known.rows)) > 1
    all_of_them = f"{len(known.rankings)} keep ratios{' of all variants' if several else ''}"
    smallest = min(known.rankings, key=lambda ranking: ranking.keep)
    tied, worse = smallest.tied(), smallest.worse()
    undecided = [quoted(c.label) for c in smallest.contenders if c.label not in (*tied, *worse)]
    best, others = (titles.and_joined([quoted(label) for label in labels]) for labels in (tied, worse))
    at = _at(smallest.keep, smallest.variant).strip().capitalize()
    have, are, they = ("have the same", "are", "they") if len(tied) > 1 else ("has the best", "is", "it")
    if undecided:
        more = f"; {they} {are} better than {others}" if others else ""
        text = f"{at}, {best} {have} {known.metric.title}, but {are} not shown to be better than"
        yield f"{text} {titles.and_joined(undecided)}{more}."
    elif len(tied) > 1:
        yield f"{at}, {best} have the same {known.metric.title}{f' and are better than {others}' if others else ''}."
    else:
        yield f"{at}, {best} is better than {others}."
    wins: dict[str, list[str]] = {}
    for ranking in known.rankings:
        if len(ranking.worse()) == len(ranking.contenders) - 1:
            place = titles.joined(numbers.keep(ranking.keep), ranking.variant)
            wins.setdefault(quoted(ranking.contenders[0].label), []).append(place)
    for name, places in wins.items():
        yield f"{name} is better than all others at {titles.and_joined(places)} ({len(places)} of {all_of_them})."
    if not wins:
        yield f"At none of {all_of_them} is one method better than all others."


def _time(known: _Known) -> Iterator[str]:
    cells = compressed(known.rows)
    means = cells.groupby("label", sort=False)["seconds"].mean().dropna()
    if len(means) and means.max() > 0:
        least, most = numbers.duration(float(means.min())), numbers.duration(float(means.max()))
        quick, slow = (known.styles.quoted(str(label)) for label in (means.idxmin(), means.idxmax()))
        span = f"{least} with {quick} and {most} with {slow}" if least != most else most
        what = "Compression takes" if prune_only(known.rows) else "Compression and retraining take"
        yield f"{what} {span} per network, on average over keep ratios."


def _deploy(known: _Known) -> Iterator[str]:
    """The network within the loss for deployment that costs least where it runs, else that with the smallest file."""
    if not runtimes_of(known.rows):
        delta, row = deployed_loss(known.rows), smallest_within(known.rows, deployed_loss(known.rows))
        if (
            row is not None
            and known.metric.loss(row[known.metric.reference], row[known.metric.name]) <= delta + ROUNDING
        ):
            own = references(known.rows[known.rows["variant"] == row["variant"]])
            size, whole = (numbers.kilobytes(float(b)) for b in (row["bytes_file"], own["bytes_file"].mean()))
            name = f"{_name(known, row)}{_at(float(row['keep_target']))}"
            yield f"The smallest file {_allowed(known.metric, delta)}: {name}, {size} kB instead of {whole} kB."
        return
    for variant in variants_of(known.rows):
        yield from _deployed(known, known.rows[known.rows["variant"] == variant])


def _deployed(known: _Known, rows: DataFrame) -> Iterator[str]:
    """The network of a variant that costs least in any runtime."""
    table, delta = deployments(rows), deployed_loss(rows)
    table = table[table["method"] != "Fake"]
    cost = next((c for c in costs_of(table) if c.startswith("latency")), BYTES)
    original = table[table["method"] == REFERENCE]
    figure = original.loc[original["runtime"] == TORCH, FIGURE].mean()
    good = known.metric.loss(figure, table[FIGURE]) <= delta + ROUNDING
    found = table[good & (table["method"] != REFERENCE) & table[cost].notna()].sort_values(cost)
    if len(found):
        best, least = found.iloc[0], float(original[cost].min())
        write, unit = (numbers.kilobytes, "kB") if cost == BYTES else ("{:.3g}".format, "ms")
        name = titles.joined(known.styles.quoted(str(best["label"])), str(rows["variant"].iloc[0]))
        yield (
            f"To deploy {_allowed(known.metric, delta)}: {name}{_at(float(best['keep_target']))} in {best['runtime']}, "
            f"{write(float(best[cost]))} {unit} instead of {write(least)} {unit}."
        )


def _not_compared(known: _Known) -> Iterator[str]:
    frame, settings = known.source.results, all_settings(known.source)
    counts = frame["status"].value_counts()
    for status in ("failed", "infeasible"):
        if counts.get(status, 0):
            yield f"{counts[status]} {status} cells"
    sized = [
        known.styles.quoted(str(c)) for c in dict.fromkeys(known.rows.loc[known.rows["keep_target"].isna(), "label"])
    ]
    if sized:
        yield f"{titles.and_joined(sized)} at equal keep ratios, since settings or a search decide the size"
    if any(b.networks() < max(len(c.figures) for c in b.contenders) for b in known.rankings):
        yield "networks that some methods lack"
    if frame["net"].nunique() == 1:
        yield "other networks of this kind, since there is one: intervals are about test samples alone"
    if not any("latency" in p.experiments.measure or p.experiments.export for p in settings):
        yield "latency (measure: [latency]): fewer parameters or FLOPs need not be faster"
    if prune_only(frame):
        yield "retrained networks"
    elif "seconds_tune" not in frame:
        yield "retraining with settings of its own for each method (retraining.tune), which may change their order"
