"""The parts of a report in words: what was run, what failed, how to load a network, where it ran, definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiment.report.document import Block, Code, Items, Section, Table, Text
from experiment.report.mean_and_spread import compressed, labels_of
from experiment.report.plots.label_styles import Naming
from experiment.report.prune_potential import smallest_within
from experiment.report.results_folder import REFERENCE, Source
from experiment.report.words import numbers, settings
from experiment.report.words.modes import mode_in_words

if TYPE_CHECKING:
    from pandas import DataFrame

    from experiment.run.grid.data_facts import DataFacts

STATUS = ("done", "infeasible", "failed")
NUM_REASONS = 40
NUM_CLASSES = 5  # that are named

DEFINITIONS = (
    (
        "Parameters",
        "elements of all parameters of the deployed network, BatchNorm and biases included, masked weights left out.",
    ),
    (
        "FLOPs",
        "multiply-adds of one sample's forward pass in all convolutions and matrix products, those of attention and "
        "recurrent layers included. A mask does not lower them; FLOPs of unmasked weights count those alone.",
    ),
    (
        "Keep ratio",
        "kept share of the budgeted quantity: the target is asked for, the achieved one is counted. Plots and tables "
        "show achieved sizes.",
    ),
    ("4.0× smaller", "original size divided by compressed size; likewise for multiply-adds."),  # noqa: RUF001
    ("± and bands", "one sample standard deviation over networks and repetitions."),
    (
        "Loss of accuracy",
        "top-1 test accuracy of the reference network minus that of the compressed one, in percentage points.",
    ),
    (
        "Prune potential",
        "the largest share removed while the loss of accuracy is at most delta; 0 where no compressed network does it.",
    ),
    (
        "Bytes",
        "dense: every element that the tensors hold; values: unmasked elements alone, quantized ones in their own "
        "bits; sparse: the smallest of dense, bitmask and CSR storage; file: network.pt on disk. 1 kB is 1000 bytes.",
    ),
    (
        "Infeasible",
        "the budget lies below the smallest network that the method can make; of a search: none of the networks that "
        "were made lies within the allowed loss of accuracy.",
    ),
)


def what_was_run(source: Source) -> Section:
    """Network, data, methods, budget and how far the experiment has come, in a few lines."""
    frame = source.results
    items = [(name, text) for name, text in _facts(source) if text]
    counts = {status: int((frame["status"] == status).sum()) for status in STATUS}
    items.append(("Cells", ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "none finished yet"))
    if mixed := _mixed_hardware(frame):
        items.append(("Hardware", mixed))
    seconds = float(frame["seconds_compress"].sum() + frame["seconds_retrain"].sum())
    if seconds > 0:
        items.append(("Computing time", f"{numbers.duration(seconds)} of compression and retraining in all cells"))
    return Section("What was run", [Items(items)])


def _facts(source: Source) -> Iterator[tuple[str, str]]:
    frame, setting = source.results, source.setting
    own = frame[frame["method"] != REFERENCE]
    if len(frame):
        yield "Network", ", ".join(dict.fromkeys(frame["network"])) + settings.network_settings(source)
        pairs = dict.fromkeys(zip(frame["dataset"], frame["dataset_test"], strict=True))
        yield "Dataset", ", ".join(f"{d}, tested on {t}" if t and t != d else str(d) for d, t in pairs)
    yield from _data(source.data)
    yield "Methods", ", ".join(_with_method(source, label) for label in labels_of(frame))
    yield "Settings of methods", settings.method_settings(source)
    yield "Mode", mode_in_words(source, long=True)
    yield "Budget", f"share of the {setting('experiments', 'budget') or 'parameters'}"
    yield "Keep ratios", ", ".join(numbers.keep(float(k)) for k in dict.fromkeys(own["keep_target"].dropna()))
    yield "Search", settings.search(source)
    if len(frame):
        nets, repetitions = frame["net"].nunique(), own["repetition"].nunique()
        yield "Networks", f"{nets} trained" + (f", {repetitions} repetitions of each cell" if repetitions > 1 else "")
    yield "Training", settings.training(source)
    yield "Retraining", settings.retraining(source) if len(compressed(frame)) else ""
    yield "Penalties", settings.penalties(source)
    yield "Distillation", settings.distillation(source)
    yield "Learning and compressing", settings.learn_compress(source)
    yield "Variants", ", ".join(v for v in dict.fromkeys(frame["variant"]) if v)
    yield "Seed", "" if setting("seed") is None else str(setting("seed"))


def _data(datasets: Sequence[DataFacts]) -> Iterator[tuple[str, str]]:
    """Where the data lie, how many inputs every part has, the classes, and what looked wrong before training."""
    several = len(datasets) > 1
    for facts in datasets:
        of = f" of {facts.dataset}" if several else ""
        parts = (("training", facts.training), ("validation", facts.validation), ("test", facts.test))
        counts = ", ".join(f"{numbers.whole(number)} {part}" for part, number in parts)
        yield f"Data{of}", f"{counts} inputs" + (f", from {facts.root}" if facts.root else "")
        names = ", ".join(facts.classes[:NUM_CLASSES]) + (", ..." if facts.num_classes > NUM_CLASSES else "")
        yield f"Classes{of}", f"{facts.num_classes}" + (f": {names}" if facts.classes else "")
        yield from ((f"Warning{of}", text) for text in facts.warnings)


def _mixed_hardware(frame: DataFrame) -> str:
    """That cells come from several kinds of hardware, where they do; empty where nothing is to be said."""
    counts = frame.loc[frame["hardware"] != "", "hardware"].value_counts(sort=False)
    if len(counts) < 2:
        return ""
    kinds = ", ".join(f"{number} on {kind}" for kind, number in counts.items())
    return f"mixed: {kinds}. They round differently, so that equal cells need not have equal numbers"


def _with_method(source: Source, label: str) -> str:
    """A label, with its method's name where that is another one."""
    method = next(iter(source.results.loc[source.results["label"] == label, "method"]), label)
    return label if method == label else f"{label} ({method})"


def what_failed(source: Source, naming: Naming) -> Section:
    """Cells that failed, and budgets that no network of the method meets, with the reason."""
    bad = source.results[source.results["status"].isin(["failed", "infeasible"])]
    if bad.empty:
        return Section("What failed", [Text("Nothing failed, and every budget could be met.")])
    rows = [_failure(cells, naming) for cells in _stories(bad)]
    header = ["Status", "Method", "Keep ratios", "Networks", "Reason"]
    blocks: list[Block] = [Table(header, rows[:NUM_REASONS], words=True)]
    if len(rows) > NUM_REASONS:
        blocks.append(Text(f"{len(rows) - NUM_REASONS} more stand in results.csv."))
    return Section("What failed or was infeasible", blocks)


def _stories(bad: DataFrame) -> list[DataFrame]:
    """Cells that one line tells of: failures for one reason, or a label's budgets that cannot be met."""
    told = bad.assign(reason=bad["error"].where(bad["status"] == "failed", ""))
    return [cells for _, cells in told.groupby(["status", "variant", "label", "reason"], sort=False)]


def _failure(cells: DataFrame, naming: Naming) -> list[str]:
    first = cells.iloc[0]
    name = ", ".join(part for part in (naming.plain(str(first["label"])), str(first["variant"])) if part)
    keeps = ", ".join(numbers.keep(float(k)) for k in dict.fromkeys(cells["keep_target"].dropna()))
    nets = ", ".join(f"{net:g}" for net in sorted(set(cells["net"].dropna())))
    return [str(first["status"]), name, keeps or numbers.MISSING, nets, str(first["error"]) or "no reason recorded"]


def how_to_load(source: Source) -> Section | None:
    """A snippet that loads the smallest network losing at most one point, or else the most accurate one."""
    row = smallest_within(source.results, 0.01)
    if row is None:
        return None
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
        "print(evaluate(folder, network))  # loss, top1 and top5 on the test set",
        "results = load_results(folder)  # the numbers of this report as a pandas.DataFrame",
    )
    return Section("How to load a network", [Code("\n".join(lines))])


def environment(source: Source) -> Section:
    """Versions, device, threads, commit: whatever environment.json holds."""
    items = list(_flat(source.environment))
    return Section("Environment", [Items(items) if items else Text("Not recorded.")])


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def definitions() -> Section:
    """What the words of the report mean."""
    return Section("What the words mean", [Items(DEFINITIONS)])
