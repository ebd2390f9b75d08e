"""The parts of a report in words: what was run, what failed, how to load a network, environment, definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiment.deploy.formats import FORMATS
from experiment.report.document import Block, Code, Items, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.primary_metric import by_metric
from experiment.report.prune_potential import deployed_loss, smallest_within
from experiment.report.results_folder import Source
from experiment.report.results_table import REFERENCE, labels_of, metrics_of, references, variants_of
from experiment.report.words import numbers
from experiment.report.words.settings import all_settings, settings_in_words
from experiment.report.words.titles import capitalized, joined, mode_in_words

if TYPE_CHECKING:
    from pandas import DataFrame

    from experiment.run.grid.data_facts import DataFacts

STATUS = ("done", "infeasible", "failed")
MOST_REASONS = 40
MOST_CLASSES = 5  # listed by name

LOSS_OF_ACCURACY = "Loss of accuracy"
LOSSES = {  # of other metrics, by unit
    "fraction": "of the compressed network, compared with the reference network on the test set, in percentage points.",
    "value": "of the compressed network on the test set, in percent of the figure of the reference network.",
}
DEFINITIONS = {
    "Parameters": (
        "all elements of the parameters of the compressed network, including BatchNorm and biases, without masked "
        "weights."
    ),
    "FLOPs": (
        "multiply-adds in one forward pass of one sample, over all convolutions and matrix products, including those "
        "of attention and recurrent layers. Masks do not reduce them; FLOPs of unmasked weights do not count masked "
        "weights."
    ),
    "Keep ratio": (
        "the share of the budgeted quantity that is kept. The target is requested; the achieved ratio is counted. "
        "Plots and tables show achieved sizes."
    ),
    "4.0× smaller": "original size divided by compressed size; likewise for FLOPs.",  # noqa: RUF001
    "± and bands": "one sample standard deviation over networks and repetitions.",
    LOSS_OF_ACCURACY: (
        "top-1 test accuracy of the reference network minus that of the compressed network, in percentage points."
    ),
    "Prune potential": (
        "the largest share removed while the loss of accuracy is at most delta; 0 if no compressed network achieves "
        "that."
    ),
    "Bytes": (
        "dense: all elements of the stored tensors; values: unmasked elements only, quantized ones in their own "
        "number of bits; sparse: the smallest of dense, bitmask and CSR formats; file: network.pt on disk. 1 kB = "
        "1000 bytes."
    ),
    "Infeasible": (
        "the budget is below the smallest network that the method can produce; in a search, no network was within the"
        " allowed loss of accuracy."
    ),
}


def what_was_run(source: Source) -> Section:
    """Network, data, methods, settings and progress of the experiment."""
    frame = source.results
    counts = {status: int((frame["status"] == status).sum()) for status in STATUS}
    times = ["seconds_compress", "seconds_retrain", *(["seconds_tune"] if "seconds_tune" in frame else [])]
    seconds = float(frame[times].sum().sum())
    items = [
        *_facts(source),
        ("Cells", ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "none finished yet"),
        ("Hardware", _mixed_hardware(frame)),
        ("Computing time", f"{numbers.duration(seconds)} for compression and retraining, all cells" if seconds else ""),
    ]
    return Section("What was run", [Items([(name, text) for name, text in items if text])])


def _facts(source: Source) -> Iterator[tuple[str, str]]:
    """Terms and explanations; those without an explanation do not apply."""
    frame, p = source.results, source.parameters
    own = frame[frame["method"] != REFERENCE]
    if len(frame):
        yield "Network", ", ".join(dict.fromkeys(frame["network"]))
        pairs = dict.fromkeys(zip(frame["dataset"], frame["dataset_test"], strict=True))
        yield "Dataset", ", ".join(f"{d}, tested on {t}" if t and t != d else str(d) for d, t in pairs)
    yield from _data(source.data)
    yield "Methods", ", ".join(_with_method(frame, label) for label in labels_of(frame))
    yield "Mode", mode_in_words(all_settings(source), explain=True)
    yield "Budget", str(p.experiments.budget)
    yield "Keep ratios", ", ".join(numbers.keep(float(k)) for k in dict.fromkeys(own["keep_target"].dropna()))
    if len(frame):
        nets, repetitions = references(frame)["net"].nunique(), own["repetition"].nunique()
        yield "Networks", f"{nets} trained" + (f", {repetitions} repetitions per cell" if repetitions > 1 else "")
    yield from settings_in_words(source)
    yield "Variants", ", ".join(filter(None, variants_of(frame)))
    yield "Seed", str(p.seed)


def _data(datasets: Sequence[DataFacts]) -> Iterator[tuple[str, str]]:
    """Location, size and classes of the datasets, and warnings of the checks before training."""
    for facts in datasets:
        name = f" of {facts.dataset}" if len(datasets) > 1 else ""
        parts = (("training", facts.training), ("validation", facts.validation), ("test", facts.test))
        counts = ", ".join(f"{numbers.whole(number)} {part}" for part, number in parts)
        yield f"Data{name}", f"{counts} inputs" + (f", from {facts.root}" if facts.root else "")
        classes = ", ".join(facts.classes[:MOST_CLASSES]) + (", ..." if facts.num_classes > MOST_CLASSES else "")
        yield f"Classes{name}", f"{facts.num_classes}" + (f": {classes}" if facts.classes else "")
        yield from ((f"Warning{name}", text) for text in facts.warnings)


def _mixed_hardware(frame: DataFrame) -> str:
    """A warning if cells come from different kinds of hardware."""
    counts = frame.loc[frame["hardware"] != "", "hardware"].value_counts(sort=False)
    if len(counts) < 2:
        return ""
    kinds = ", ".join(f"{number} cells on {kind}" for kind, number in counts.items())
    return f"mixed: {kinds}. Rounding differs between them, so equal cells may have different numbers"


def _with_method(frame: DataFrame, label: str) -> str:
    """A label, with the name of its method if that is different."""
    method, name = frame.loc[frame["label"] == label, "method"].iloc[0], LabelStyles().quoted(label)
    return name if method == label else f"{name} ({method})"


def what_failed(source: Source, styles: LabelStyles) -> Section:
    """Failed cells, infeasible budgets and networks that could not be exported, with the reasons."""
    import pandas as pd

    bad = source.results[source.results["status"].isin(["failed", "infeasible"])]
    refused = pd.concat([bad.iloc[:0], *_not_exported(source.results)])
    bad = pd.concat([bad, refused]) if len(refused) else bad
    if bad.empty:
        return Section("What failed", [Text("Nothing failed, and all budgets were feasible.")])
    reasons = bad["error"].where(bad["status"] != "infeasible", "")  # one row per label for all its infeasible budgets
    grouped = bad.assign(reason=reasons).groupby(["status", "variant", "label", "reason"], sort=False)
    rows = [_failure(cells, styles) for _, cells in grouped]
    header = ["Status", "Method", "Keep ratios", "Networks", "Reason"]
    blocks: list[Block] = [Table(header, rows[:MOST_REASONS], words=True)]
    if len(rows) > MOST_REASONS:
        blocks.append(Text(f"{len(rows) - MOST_REASONS} more are listed in results.csv."))
    return Section("What failed or was infeasible", blocks)


def _not_exported(results: DataFrame) -> Iterator[DataFrame]:
    """For every format the finished networks of which there is no file, with the reason as their error."""
    for name in FORMATS:
        column = f"error_{name}"
        if column in results:
            refused = results[(results["status"] == "done") & (results[column].fillna("") != "")]
            reasons = [f"{name}: {text.removeprefix(f'{name}: ')}" for text in refused[column].astype(str)]
            yield refused.assign(status="not exported", error=reasons)


def _failure(cells: DataFrame, styles: LabelStyles) -> list[str]:
    first = cells.iloc[0]
    name = joined(styles.plain(str(first["label"])), str(first["variant"]))
    keeps = ", ".join(numbers.keep(float(k)) for k in dict.fromkeys(cells["keep_target"].dropna()))
    nets = ", ".join(f"{net:g}" for net in sorted(set(cells["net"].dropna())))
    return [str(first["status"]), name, keeps or numbers.MISSING, nets, str(first["error"]) or "no reason recorded"]


def how_to_load(source: Source) -> Section | None:
    """Code that loads the network with the smallest file within the loss for deployment, else the most accurate one."""
    row = smallest_within(source.results, deployed_loss(source.results))
    if row is None:
        return None
    metrics = metrics_of(source.results)
    printed = ", ".join(["loss", *metrics[:-1]]) + f" and {metrics[-1]}"
    keep = "" if math.isnan(row["keep_target"]) else f", keep={numbers.keep(row['keep_target'])}"
    which = "method" if row["label"] == row["method"] else "label"
    net = f", net={row['net']:g}" + (f", repetition={row['repetition']:g}" if row["repetition"] > 0 else "")
    variant = f", variant={row['variant']!r}" if row["variant"] else ""
    lines = (
        "from experiment import evaluate, load_network, load_results",
        "",
        f"folder = {source.folder.as_posix()!r}",
        f"network = load_network(folder, {which}={row['label']!r}{keep}{net}{variant})",
        f"reference = load_network(folder, method={REFERENCE!r}, net={row['net']:g}{variant})",
        f"print(evaluate(folder, network))  # {printed} on the test set",
        "results = load_results(folder)  # the numbers of this report as a pandas.DataFrame",
    )
    return Section("How to load a network", [Code("\n".join(lines))])


def environment(source: Source) -> Section:
    """The content of environment.json: versions, device, threads, commit."""
    items = list(_flat(source.environment))
    return Section("Environment", [Items(items) if items else Text("Not recorded.")])


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def definitions(source: Source) -> Section:
    """The terms used in the report."""
    metrics = [metric for metric, _ in by_metric(source.results)]
    if [metric.name for metric in metrics] == ["top1"]:
        return Section("Definitions", [Items(list(DEFINITIONS.items()))])
    losses = " or ".join(metric.loss_title for metric in metrics)
    terms = {t: text.replace("loss of accuracy", losses) for t, text in DEFINITIONS.items() if t != LOSS_OF_ACCURACY}
    terms |= {capitalized(metric.loss_title): LOSSES[metric.unit] for metric in metrics}
    return Section("Definitions", [Items(list(terms.items()))])
