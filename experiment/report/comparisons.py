"""Which methods differ at equal keep ratios: paired differences of every two, from the figures of every test sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from experiment.report.paired import Array, Estimate, between_networks, holm, mean_of, paired_difference
from experiment.report.primary_metric import ReportedMetric, by_metric
from experiment.report.results_folder import read_arrays
from experiment.report.results_table import REFERENCE, compressed, tidy
from experiment.run.disk.damaged_files import SAMPLES

if TYPE_CHECKING:
    from pandas import DataFrame

Samples = Mapping[str, Array]  # key of a cell -> the primary metric of every test sample
Place = tuple[str, str, float | None]
ALPHA = 0.05
COLUMNS = (
    "variant", "keep_target", "metric", "first", "second", "difference", "low", "high", "p", "p_holm", "networks",
    "samples",
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A label at one keep ratio: its cells by network, and their figures."""

    label: str
    figures: Mapping[float, float]  # network -> mean over repetitions
    cells: Mapping[float, Sequence[str]]


@dataclass(frozen=True)
class Ranking:
    """The methods at one keep ratio of one variant, the best first, and their differences.

    Attributes:
        best: its mean over networks and samples, with the interval.
        pairs: (first, second) -> how much better the first is, with the interval, in the unit of the metric.
        adjusted: (first, second) -> Holm's p-value over all pairs.
    """

    variant: str
    keep: float
    metric: ReportedMetric
    contenders: Sequence[Contender]
    best: Estimate
    pairs: Mapping[tuple[str, str], Estimate]
    adjusted: Mapping[tuple[str, str], float]
    samples: int

    def tied(self) -> list[str]:
        """The best label, and those that do not differ from it at all."""
        first, *others = (c.label for c in self.contenders)
        return [first, *(o for o in others if (first, o) in self.pairs and self.pairs[first, o].is_zero())]

    def worse(self) -> list[str]:
        """The labels that are worse than all best ones, as far as these networks and samples tell."""
        best = self.tied()
        return [c.label for c in self.contenders if all(self.adjusted.get((b, c.label), 1.0) < ALPHA for b in best)]

    def networks(self, *labels: str) -> int:
        """The number of networks that all these labels have; by default all."""
        return len(set.intersection(*(set(c.figures) for c in self.contenders if not labels or c.label in labels)))


@dataclass(frozen=True)
class Comparisons:
    """What is known about the order of methods, and about the loss of every network.

    Attributes:
        rankings: of the methods, one per variant and keep ratio.
        losses: (variant, label, keep ratio) -> how much worse than the reference networks, as `ReportedMetric.loss`.
            The keep ratio is None if the method decides its size.
    """

    rankings: Sequence[Ranking]
    losses: Mapping[Place, Estimate]


def compare(folder: Path, results: DataFrame) -> Comparisons:
    """Compare the methods of an experiment with each other, and with its reference networks.

    Args:
        folder: the experiment's folder, whose cells have the figures of test samples.
        results: rows of results.csv on the first test set.

    Example:
        >>> as_table(compare(folder, load_results(folder)).rankings)
    """
    frame = tidy(results)
    samples = read_samples(folder, list(frame.loc[frame["status"] == "done", "cell"]))
    return Comparisons(list(rankings(frame, samples)), losses(frame, samples))


def read_samples(folder: Path, cells: Sequence[str]) -> dict[str, Array]:
    """The primary metric of every test sample (N,) of those cells that have them."""
    import numpy as np

    found = {}
    for cell, arrays in read_arrays(folder, cells, SAMPLES, ("figures",)):
        values = arrays["figures"]
        if values.ndim == 1 and len(values) and values.dtype.kind in "bf" and np.isfinite(values).all():
            found[cell] = values.astype(np.float32)
    return found


def rankings(results: DataFrame, samples: Samples) -> Iterator[Ranking]:
    """Every variant and keep ratio at which at least two methods are finished.

    Pairs are compared on the networks that both have. Cells without figures of samples, as those of earlier versions,
    are compared over networks alone.
    """
    frame = tidy(results)
    for metric, rows in by_metric(compressed(frame)):
        rows = rows[(rows["method"] != "Fake") & rows["keep_target"].notna() & rows[metric.name].notna()]
        for (variant, keep), cells in rows.groupby(["variant", "keep_target"], sort=False):
            contenders = list(_contenders(cells, metric))
            if len(contenders) > 1:
                yield _compared(str(variant), float(str(keep)), metric, contenders, samples)


def as_table(found: Sequence[Ranking]) -> DataFrame:
    """One row per pair, with the columns COLUMNS: `difference` is how much better `first` is, in the metric's unit."""
    import pandas as pd

    rows = [
        (b.variant, b.keep, b.metric.name, first, second, e.value, e.low, e.high, e.p, b.adjusted[first, second],
         b.networks(first, second), b.samples)
        for b in found
        for (first, second), e in b.pairs.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def place_of(variant: object, label: object, keep: object) -> Place:
    """The key of `Comparisons.losses`."""
    share = float(str(keep))
    return str(variant), str(label), None if math.isnan(share) else share


def values_of(curve: Contender, nets: Sequence[float], samples: Samples) -> Array:
    """The values (R, N) of the networks, means over repetitions; their figures (R, 1) if samples are unknown."""
    import numpy as np

    found = [[samples.get(cell) for cell in curve.cells[net]] for net in nets]
    lengths = {None if values is None else len(values) for row in found for values in row}
    if len(lengths) != 1 or None in lengths:
        return np.array([[curve.figures[net]] for net in nets])
    return np.array([row[0] if len(row) == 1 else np.mean(np.array(row), axis=0) for row in found])


def _contenders(cells: DataFrame, metric: ReportedMetric) -> Iterator[Contender]:
    """The labels among cells at one keep ratio."""
    for label, rows in cells[["label", "net", "cell", metric.name]].groupby("label", sort=False):
        figures = {float(str(net)): float(value) for net, value in rows.groupby("net")[metric.name].mean().items()}
        keys: dict[float, list[str]] = {net: [] for net in figures}
        for net, cell in zip(rows["net"], rows["cell"], strict=True):
            keys[net].append(cell)
        yield Contender(str(label), figures, keys)


def _compared(
    variant: str, keep: float, metric: ReportedMetric, contenders: Sequence[Contender], samples: Samples
) -> Ranking:
    sign = 1 if metric.falls else -1
    ranked = sorted(contenders, key=lambda c: -sign * fmean(c.figures.values()))
    values = {
        (first.label, second.label): _shared_values(first, second, samples)
        for first, second in itertools.combinations(ranked, 2)
        if set(first.figures) & set(second.figures)
    }
    usual = median(between_networks(*pair) for pair in values.values()) if values else 0.0
    pairs = {
        labels: paired_difference(*((one, two) if sign > 0 else (two, one)), usual)
        for labels, (one, two) in values.items()
    }
    adjusted = dict(zip(pairs, holm([e.p for e in pairs.values()]), strict=True))
    own = values_of(ranked[0], list(ranked[0].figures), samples)
    return Ranking(variant, keep, metric, ranked, mean_of(own), pairs, adjusted, own.shape[1])


def losses(results: DataFrame, samples: Samples) -> dict[Place, Estimate]:
    """The losses of `Comparisons`."""
    frame, found = tidy(results), {}
    for metric, rows in by_metric(frame):
        own = rows[(rows["status"] == "done") & rows[metric.name].notna()]
        for variant, cells in own.groupby("variant", sort=False):
            reference = next(iter(_contenders(cells[cells["method"] == REFERENCE], metric)), None)
            for keep, at in cells[cells["method"] != REFERENCE].groupby("keep_target", sort=False, dropna=False):
                for curve in _contenders(at, metric):
                    if reference is not None and set(curve.figures) & set(reference.figures):
                        found[place_of(variant, curve.label, keep)] = _loss(metric, reference, curve, samples)
    return found


def _loss(metric: ReportedMetric, reference: Contender, curve: Contender, samples: Samples) -> Estimate:
    one, two = _shared_values(reference, curve, samples)
    e = paired_difference(*((one, two) if metric.falls else (two, one)))
    if metric.unit == "fraction":
        return e
    scale = abs(fmean(reference.figures[net] for net in curve.figures if net in reference.figures))
    return Estimate(e.value / scale, e.low / scale, e.high / scale, e.p)


def _shared_values(first: Contender, second: Contender, samples: Samples) -> tuple[Array, Array]:
    """The values of both on the networks that both have."""
    nets = [net for net in first.figures if net in second.figures]
    one, two = values_of(first, nets, samples), values_of(second, nets, samples)
    if one.shape != two.shape:  # of one of them, samples are unknown
        one, two = (values_of(c, nets, {}) for c in (first, second))
    return one, two
