"""The text and tables of a report, section by section."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiment.report import numerals
from experiment.report.document import Block, Code, Items, Picture, Section, Table, Text
from experiment.report.naming import Naming
from experiment.report.source import REFERENCE, Source
from experiment.report.summary import GROUP, compressed, labels_of, prune_only, references, summarize
from experiment.report.table import potential_rows, smallest_within

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MODES = {
    "train": "training only",
    "retrain": "one-shot (every keep ratio starts from the reference network)",
    "cascade": "cascade (every keep ratio starts from the previous, retrained one)",
    "cascade-rewind": "cascade with rewinding (weights go back to an earlier epoch before retraining)",
}
NUM_REASONS = 40

DEFINITIONS = (
    ("Parameters", "elements of all parameters of the deployed network, BatchNorm and biases included; masked weights are not counted."),
    ("FLOPs", "multiply-adds of one sample's forward pass through every convolution and linear layer, grouped ones and factors included. "
              "A mask does not lower them; FLOPs of unmasked weights count those alone."),
    ("Keep ratio", "kept share of the budgeted quantity: the target is asked for, the achieved one is counted. Plots and tables show achieved sizes."),
    ("4.0× smaller", "original size divided by compressed size; likewise multiply-adds."),  # noqa: RUF001
    ("±", "one sample standard deviation over networks and repetitions, as the bands of the plots."),
    ("Loss of accuracy", "top-1 test accuracy of the reference network minus that of the compressed one, in percentage points."),
    ("Prune potential", "the largest share removed while the loss of accuracy is at most delta; 0 where no compressed network satisfies it."),
    ("Bytes", "dense: every element that the tensors hold; values: unmasked elements alone; sparse: the smallest of dense, bitmask and CSR storage; "
              "file: network.pt on disk. kB are 1000 bytes."),
    ("Infeasible", "the budget lies below the smallest network that the method can make."),
)  # fmt: skip


def what_was_run(source: Source) -> Section:
    """Network, data, methods, budget and how far the experiment has come, in a few lines."""
    frame = source.results
    items = [(name, text) for name, text in _facts(source) if text]
    counts = frame["status"].value_counts()
    finished = ", ".join(f"{counts[s]} {s}" for s in ("done", "infeasible", "failed") if s in counts)
    other = int(len(frame) - sum(counts.get(s, 0) for s in ("done", "infeasible", "failed")))
    items.append(("Cells", (finished or "none finished yet") + (f", {other} not finished" if other else "")))
    seconds = float(frame["seconds_compress"].sum() + frame["seconds_retrain"].sum())
    if seconds > 0:
        items.append(
            ("Computing time", f"{numerals.duration(seconds)} for compression and retraining, all cells together")
        )
    return Section("What was run", [Items(items)])


def _facts(source: Source) -> Iterator[tuple[str, str]]:
    frame, setting = source.results, source.setting
    if len(frame):
        yield "Network", ", ".join(dict.fromkeys(frame["network"]))
        datasets = frame[["dataset", "dataset_test"]].drop_duplicates().itertuples(index=False)
        yield "Dataset", ", ".join(f"{d}, tested on {t}" if t and t != d else str(d) for d, t in datasets)
    yield "Methods", ", ".join(naming_text(source, label) for label in labels_of(frame))
    mode = setting("experiments", "mode")
    yield "Mode", MODES.get(str(mode), str(mode)) if mode is not None else ""
    yield "Budget", f"share of the {setting('experiments', 'budget') or 'parameters'}"
    yield "Keep ratios", ", ".join(numerals.keep(float(k)) for k in dict.fromkeys(_own(frame)["keep_target"].dropna()))
    if len(frame):
        nets, repetitions = frame["net"].nunique(), _own(frame)["repetition"].nunique()
        yield (
            "Networks",
            f"{nets} trained from different seeds" + (f", {repetitions} repetitions" if repetitions > 1 else ""),
        )
    yield "Training", _training(source)
    if len(compressed(frame)):
        epochs = sorted(set(compressed(frame)["epochs"].dropna()))
        yield "Retraining", "none" if prune_only(frame) else f"{', '.join(f'{e:g}' for e in epochs)} epochs"
    yield "Variants", ", ".join(v for v in dict.fromkeys(frame["variant"]) if v)
    seed = setting("seed")
    yield "Seed", "" if seed is None else str(seed)


def naming_text(source: Source, label: str) -> str:
    """A label with its method's name where that is another one."""
    method = next(iter(source.results.loc[source.results["label"] == label, "method"]), label)
    return label if method == label else f"{label} ({method})"


def _own(frame: DataFrame) -> DataFrame:
    return frame[frame["method"] != REFERENCE]


def _training(source: Source) -> str:
    epochs, batch = source.setting("training", "numEpochs"), source.setting("training", "batchSize")
    optimizer, options = source.setting("training", "optimizer"), source.setting("training", "optimizerKwargs")
    parts = [
        f"{epochs} epochs" if epochs is not None else "",
        f"batches of {batch}" if batch is not None else "",
        f"{optimizer}({_options(options)})" if optimizer else "",
    ]
    return ", ".join(part for part in parts if part)


def _options(options: object) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items()) if isinstance(options, Mapping) else ""


def reference_networks(source: Source) -> Section:
    """Accuracy and size of every uncompressed network."""
    found = references(source.results)
    same = [c for c in found.columns if c != "variant"]
    found = found.drop_duplicates(same)
    if found.empty:
        return Section("Reference networks", [Text("No reference network is finished yet.")])
    several = found["variant"].nunique() > 1
    header = [
        "Network",
        *(["Variant"] if several else []),
        "Top-1 (%)",
        "Top-5 (%)",
        "Loss",
        "Parameters",
        "FLOPs",
        "File (kB)",
    ]
    rows = [
        [f"{row.network} n{row.net:g}", *([str(row.variant)] if several else []), numerals.percent(row.top1, 2),
         numerals.percent(row.top5, 2), numerals.number_spread(row.loss, math.nan), numerals.whole(row.parameters),
         numerals.megas(row.flops), numerals.kilobytes(row.bytes_file)]
        for row in found.itertuples()
    ]  # fmt: skip
    if len(found) > 1 and not several:
        top5 = numerals.percent_spread(found["top5"].mean(), found["top5"].std())
        loss = numerals.number_spread(found["loss"].mean(), found["loss"].std())
        mean = numerals.percent_spread(found["top1"].mean(), found["top1"].std())
        rows.append(["mean ± std", mean, top5, loss, "", "", ""])
    return Section("Reference networks", [Table(header, rows)])


def potential(source: Source, naming: Naming) -> Section:
    """The prune-potential tables of both quantities and both definitions."""
    frame = source.results
    if compressed(frame).empty:
        return Section("Prune potential", [Text("No compressed network is finished yet.")])
    blocks: list[Block] = [
        Text("Share removed in percent (and how many times smaller), at the largest reduction whose loss of top-1 accuracy is at most "
             "that of the column. Accuracy and size are averaged over networks and repetitions first.")
    ]  # fmt: skip
    for quantity, name in (("parameters", "Parameters"), ("flops", "FLOPs")):
        header, rows = potential_rows(frame, quantity, None, "mean", naming)
        blocks.append(Table([f"{name} removed: method" if h == "Method" else h for h in header], rows))
    if len(compressed(frame)[["net", "repetition"]].drop_duplicates()) > 1:
        blocks.append(
            Text(
                "The same, searched on the curve of every network and repetition by itself, then averaged (mean ± std):"
            )
        )
        header, rows = potential_rows(frame, "parameters", None, "net", naming)
        blocks.append(Table([f"Parameters removed: method" if h == "Method" else h for h in header], rows))
    if any("†" in cell for block in blocks if isinstance(block, Table) for row in block.rows for cell in row):
        blocks.append(Text("† averages fewer networks than others: some cells are unfinished, failed or infeasible."))
    return Section("Prune potential", blocks)


def pictures(title: str, found: Sequence[Picture]) -> Section:
    """The plots, or a word that there are none yet."""
    return Section(title, list(found) or [Text("Nothing to draw yet.")])


def every_keep_ratio(source: Source, naming: Naming) -> Iterator[Section]:
    """A table a variant and label: what was achieved at every keep ratio."""
    summary = summarize(source.results)
    retrained, has_top5 = not prune_only(source.results), bool(summary["top5"].notna().any())
    for key, rows in summary.groupby(GROUP, sort=False):
        first = dict(zip(GROUP, key, strict=True))
        variant = f", {first['variant']}" if first["variant"] else ""
        header = [
            "Keep ratio",
            "Parameters kept (%)",
            "smaller",
            "FLOPs kept (%)",
            "fewer",
            "Top-1 (%)",
            "change (points)",
        ]
        header += ["Top-1 before retraining (%)"] if retrained else []
        header += ["Top-5 (%)"] if has_top5 else []
        header += ["Loss", "cells"]
        body = [_keep_row(row, retrained, has_top5) for _, row in rows.iterrows()]
        yield Section(f"{naming.plain(str(first['label']))}{variant}", [Table(header, body)], folded=True)


def _keep_row(row: Series, retrained: bool, has_top5: bool) -> list[str]:
    target = float(row["keep_target"])
    cells = [
        "own" if math.isnan(target) else numerals.keep(target),
        numerals.percent(row["keep_parameters"], 2), numerals.factor(row["keep_parameters"]),
        numerals.percent(row["keep_flops"], 2), numerals.factor(row["keep_flops"]),
        numerals.percent_spread(row["top1"], row["top1_std"]), numerals.change(row["top1"] - row["top1_reference"]),
    ]  # fmt: skip
    if retrained:
        cells.append(numerals.percent_spread(row["top1_before_retraining"], row["top1_before_retraining_std"]))
    if has_top5:
        cells.append(numerals.percent_spread(row["top5"], row["top5_std"]))
    return [*cells, numerals.number_spread(row["loss"], row["loss_std"]), str(row["cells"])]


def bytes_of_smallest(source: Source, naming: Naming) -> Section | None:
    """Bytes of the smallest network of every label, beside the reference's."""
    summary = summarize(source.results)
    summary = summary[summary["bytes_file"].notna() | summary["bytes_dense"].notna()]
    if summary.empty:
        return None
    smallest = summary.loc[summary.groupby(GROUP, sort=False)["keep_parameters"].idxmin()].sort_index()
    header = ["Method", "Parameters kept (%)", "Dense (kB)", "Values (kB)", "Sparse (kB)", "File (kB)"]
    rows = [
        [", ".join(p for p in (naming.plain(str(row["label"])), str(row["variant"])) if p), numerals.percent(row["keep_parameters"], 2),
         *(numerals.kilobytes(row[f"bytes_{kind}"]) for kind in ("dense", "values", "sparse", "file"))]
        for _, row in smallest.iterrows()
    ]  # fmt: skip
    reference = references(source.results)
    dense = numerals.kilobytes(reference["bytes_dense"].mean())
    rows.insert(
        0,
        [REFERENCE, numerals.percent(1.0, 2), dense, dense, dense, numerals.kilobytes(reference["bytes_file"].mean())],
    )
    return Section("Bytes of the smallest networks", [Table(header, rows)])


def what_failed(source: Source, naming: Naming) -> Section:
    """Cells that failed, and budgets that no network of the method meets, with the reason."""
    frame = source.results
    bad = frame[frame["status"].isin(["failed", "infeasible"])]
    if bad.empty:
        return Section("What failed", [Text("Nothing failed, and every budget could be met.")])
    reasons = bad["error"].where(bad["status"] == "failed", "")  # an infeasible budget is one story a label
    rows = []
    for (status, variant, label, _), cells in bad.groupby(
        [bad["status"], bad["variant"], bad["label"], reasons], sort=False
    ):
        name = ", ".join(part for part in (naming.plain(str(label)), str(variant)) if part)
        keeps = ", ".join(numerals.keep(float(k)) for k in dict.fromkeys(cells["keep_target"].dropna()))
        nets = ", ".join(f"{n:g}" for n in sorted(set(cells["net"].dropna())))
        reason = " ".join(str(cells["error"].iloc[0]).split()) or "no reason recorded"
        rows.append([str(status), name, keeps or numerals.MISSING, nets, reason])
    blocks: list[Block] = [
        Table(["Status", "Method", "Keep ratios", "Networks", "Reason"], rows[:NUM_REASONS], words=True)
    ]
    if len(rows) > NUM_REASONS:
        blocks.append(Text(f"{len(rows) - NUM_REASONS} more stand in results.csv."))
    return Section("What failed or was infeasible", blocks)


def how_to_load(source: Source) -> Section | None:
    """A snippet that loads the smallest network losing at most one point, or else the most accurate one."""
    row = smallest_within(source.results, 0.01)
    if row is None:
        return None
    keep = "" if math.isnan(row["keep_target"]) else f", keep={numerals.keep(row['keep_target'])}"
    which = "method" if row["label"] == row["method"] else "label"
    net = f", net={row['net']:g}" + (f", repetition={row['repetition']:g}" if row["repetition"] > 0 else "")
    variant = f", variant={row['variant']!r}" if row["variant"] else ""
    lines = [
        "from experiment import evaluate, load_network, load_results",
        "",
        f"folder = {source.folder.as_posix()!r}",
        f"network = load_network(folder, {which}={row['label']!r}{keep}{net}{variant})",
        "print(evaluate(folder, network))                  # loss, top1, top5 on the test set",
        f"reference = load_network(folder, method={REFERENCE!r}, net={row['net']:g}{variant})",
        "results = load_results(folder)                    # this report's numbers as a pandas.DataFrame",
    ]
    return Section("How to load a network", [Code("\n".join(lines))])


def environment(source: Source) -> Section:
    """Versions, device, threads, commit: whatever environment.json holds."""
    items = list(_flat(source.environment))
    return Section("Environment", [Items(items) if items else Text("Not recorded.")])


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def definitions() -> Section:
    """What the words of the report mean."""
    return Section("What the words mean", [Items(DEFINITIONS)])
