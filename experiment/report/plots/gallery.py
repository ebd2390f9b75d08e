"""Which plots an experiment has, with their file names and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiment.files import safe_name
from experiment.report.mean_and_spread import Quantity, compressed, prune_only, quantized
from experiment.report.plots.compare_variants import comparisons, plot_variants
from experiment.report.plots.cost import latency_columns, plot_cost
from experiment.report.plots.history import plot_retraining, plot_training
from experiment.report.plots.label_styles import Naming
from experiment.report.plots.layers import plot_layers, typical_keeps
from experiment.report.plots.learn_compress import LC_COLUMNS, plot_convergence
from experiment.report.plots.one_layer import one_layer_reference, one_layer_seen, plot_one_layer, ranks_of_one_layer
from experiment.report.plots.ranks import (
    RANK_COLUMNS,
    plot_rank_curves,
    plot_rank_keeps,
    plot_rank_training,
    shares_of,
)
from experiment.report.plots.ranks_by_variant import plot_rank_variants, ranks_of_variants, variants_seen
from experiment.report.plots.retrain_sweep import is_retrain_sweep, plot_retrain_sweep
from experiment.report.plots.tradeoff import Metric, Scale, plot_tradeoff
from experiment.report.results_folder import REFERENCE, Source, read_cells
from experiment.report.words.modes import mode_in_words, variant_in_words
from experiment.report.words.ranks import keeps_seen, retraining_seen, training_seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

LATENCY_PREFIX = "latency_ms_b"
HARD = 0.1  # keep ratio from which a logarithmic axis says more
LAYER_COLUMNS = ("layer", "parameters_before", "parameters")
HISTORY_COLUMNS = ("epoch", "loss", "top1", "valid_loss", "valid_top1")
QUANTITIES: tuple[Quantity, ...] = ("parameters", "flops")
WORDS = {
    "top1": "Top-1 test accuracy",
    "top5": "Top-5 test accuracy",
    "loss": "Test loss",
    "top1_before_retraining": "Top-1 test accuracy before retraining",
    "parameters": "parameters",
    "flops": "FLOPs",
    "flops_unmasked": "FLOPs of unmasked weights",
    "bytes": "bytes of values",
}


class Plot(NamedTuple):
    """A figure, the stem of its files and what to write below it."""

    stem: str
    caption: str
    figure: Figure


def plots_of(source: Source, naming: Naming) -> Iterator[Plot]:
    """Draw every plot that the experiment has data for.

    One variant alone gets all trade-offs. Of a sweep every variant gets accuracy against parameters and FLOPs, those of
    the same reference networks share a picture, and a sweep over retraining gets its summary. Layers and training
    curves are those of the first variant.
    """
    seen: set[str] = set()
    for plot in _all_plots(source, naming):
        stem, number = plot.stem, 2
        while stem.lower() in seen:  # a disk may not tell capital letters from small ones
            stem, number = f"{plot.stem}~{number}", number + 1
        seen.add(stem.lower())
        yield plot._replace(stem=stem)


def _all_plots(source: Source, naming: Naming) -> Iterator[Plot]:
    variants = list(dict.fromkeys(source.results["variant"]))
    yield from _comparisons(source, naming)
    for variant, suffix in zip(variants, _suffixes(variants), strict=True):
        frame = source.results[source.results["variant"] == variant]
        if not compressed(frame).empty:
            yield from _tradeoffs(source, naming, frame, suffix)
            yield from _costs(source, naming, frame, suffix)
    yield from _sweeps(source, naming)
    yield from _one_layer(source, naming)
    ranks = ranks_of_variants(source)
    if len(ranks):
        figure = plot_rank_variants(ranks, f"{_network(source)}: effective rank in training")
        yield Plot("ranks-variants", variants_seen(ranks), figure)
    for variant in variants[:1]:
        yield from _inside(source, naming, source.results[source.results["variant"] == variant])
    for variant, suffix in zip(variants, _suffixes(variants), strict=True):
        yield from _convergence(source, naming, source.results[source.results["variant"] == variant], suffix)


def _suffixes(variants: Sequence[str]) -> list[str]:
    """What tells the files of variants apart: nothing for one alone, else a part of a file name, different for each."""
    if len(variants) == 1:
        return [""]
    return ["-" + (safe_name(variant) if variant else "unchanged") for variant in variants]


def _comparisons(source: Source, naming: Naming) -> Iterator[Plot]:
    variants = [variant_in_words(v) for v in dict.fromkeys(source.results["variant"])]
    for label, frame in comparisons(source.results):
        scale: Scale = "log" if compressed(frame)["keep_parameters"].min() <= HARD * 1.1 else "linear"
        figure = plot_variants(
            frame, scale=scale, keep_limits=_limits(source), names=naming.names, note=_note(source, frame, "")
        )  # fmt: skip
        share = "kept (logarithmic axis)" if scale == "log" else "removed"
        caption = f"{WORDS['top1']} against the share of parameters {share}: {', '.join(variants)}."
        of_label = f"-{safe_name(label)}" if label else ""
        yield Plot(f"compare-top1-parameters{'-log' if scale == 'log' else ''}{of_label}", caption, figure)


def _costs(source: Source, naming: Naming, frame: DataFrame, suffix: str) -> Iterator[Plot]:
    """Accuracy against latency where that was measured, and against the file where bytes were asked for."""
    cells = compressed(frame)
    columns = {c: f"the latency of a batch of {c.removeprefix(LATENCY_PREFIX)}" for c in latency_columns(cells)}
    if "bytes_csr" in cells and cells["bytes_csr"].notna().any():
        columns["bytes_file"] = "the size of network.pt"
    variant = str(frame["variant"].iloc[0])
    for column, what in columns.items():
        figure = plot_cost(frame, column, naming=naming, note=_note(source, frame, variant))
        caption = f"{WORDS['top1']} against {what}{f', {variant}' if variant else ''}."
        yield Plot(f"cost-{column}{suffix}", caption, figure)


def _limits(source: Source) -> tuple[float | None, float | None]:
    """The keep ratios that the parameter file wants to see."""
    return source.setting("experiments", "plotting", "minVal"), source.setting("experiments", "plotting", "maxVal")


def _note(source: Source, frame: DataFrame, variant: str) -> str:
    """The mode and the amount of retraining, for titles; of variants together from the least to the most."""
    epochs = sorted(compressed(frame).groupby("variant")["epochs"].max().dropna())
    least, most = (epochs[0], epochs[-1]) if epochs else (0, 0)
    span = f"{most:g}" if least == most else f"{least:g} to {most:g}"
    amount = f"{span} epoch{'' if most == 1 else 's'} of retraining" if most > 0 else "no retraining"
    return ", ".join(filter(None, (mode_in_words(source, variant), amount)))


def _tradeoffs(source: Source, naming: Naming, frame: DataFrame, suffix: str) -> Iterator[Plot]:
    variant = str(frame["variant"].iloc[0])
    limits, note = _limits(source), _note(source, frame, variant)
    for metric, quantity, scale in _wanted(frame, alone=not suffix, has_top5=source.has_top5):
        figure = plot_tradeoff(
            frame,
            quantity,
            metric,
            scale=scale,
            keep_limits=limits,
            names=naming.names,
            colors=naming.colors,
            note=note,
        )
        share = "kept (logarithmic axis)" if scale == "log" else "removed"
        caption = f"{WORDS[metric]} against the share of {WORDS[quantity]} {share}{f', {variant}' if variant else ''}."
        yield Plot(f"tradeoff-{metric}-{quantity}{'-log' if scale == 'log' else ''}{suffix}", caption, figure)


def _wanted(frame: DataFrame, alone: bool, has_top5: bool) -> Iterator[tuple[Metric, Quantity, Scale]]:
    cells = compressed(frame)
    yield "top1", "parameters", "linear"
    yield "top1", "flops", "linear"
    if not alone:
        return
    if (cells["flops_unmasked"] < cells["flops"]).any():
        yield "top1", "flops_unmasked", "linear"
    if quantized(frame):
        yield "top1", "bytes", "linear"
    if cells["keep_parameters"].min() <= HARD:
        yield "top1", "parameters", "log"
    if not prune_only(frame) and cells["top1_before_retraining"].notna().any():
        yield "top1_before_retraining", "parameters", "linear"
    metrics: tuple[Metric, ...] = ("top5", "loss") if has_top5 else ("loss",)
    for metric in metrics:
        if cells[metric].notna().any():
            for quantity in QUANTITIES:
                yield metric, quantity, "linear"


def _sweeps(source: Source, naming: Naming) -> Iterator[Plot]:
    epochs = source.setting("training", "numEpochs")
    if not is_retrain_sweep(source.results) or compressed(source.results).empty:
        return
    if not isinstance(epochs, int | float) or epochs < 1:
        return
    for quantity in QUANTITIES:
        figure = plot_retrain_sweep(
            source.results, epochs, quantity=quantity, names=naming.names, colors=naming.colors
        )  # fmt: skip
        caption = f"Largest share of {WORDS[quantity]} removed against the amount of retraining."
        yield Plot(f"sweep-{quantity}", caption, figure)


def _one_layer(source: Source, naming: Naming) -> Iterator[Plot]:
    """Accuracy against rank, where a single layer is factored; all variants in one picture."""
    cells = ranks_of_one_layer(source)
    if cells.empty:
        return
    title = f"{_network(source)}: rank of {cells['layer'].iloc[0]} alone"
    reference = one_layer_reference(source)
    figure = plot_one_layer(cells, reference, naming, title)
    yield Plot("onelayer", one_layer_seen(cells, reference, naming), figure)


def _network(source: Source) -> str:
    first = source.results.iloc[0]
    return f"{first['network']} on {first['dataset']}"


def _inside(source: Source, naming: Naming, frame: DataFrame) -> Iterator[Plot]:
    """Budgets of layers and curves of training and retraining of one variant."""
    done = frame[frame["status"] == "done"]
    if done.empty:
        return
    first = done.iloc[0]
    title = ", ".join(filter(None, (f"{first['network']} on {first['dataset']}", str(first["variant"]))))
    cells = done[(done["method"] != REFERENCE) & (done["method"] != "Fake")]
    layers = read_cells(source.folder, _typical(cells, 3), "layers.csv", LAYER_COLUMNS)
    if set(LAYER_COLUMNS) <= set(layers) and len(layers):
        figure = plot_layers(layers, naming.names, f"{title}: parameters kept in every layer")
        yield Plot("layers", "Share of every layer's parameters that is kept, mean over networks.", figure)
    history = read_cells(source.folder, done[done["method"] == REFERENCE], "history.csv", HISTORY_COLUMNS)
    if "epoch" in history and history["epoch"].nunique() > 1:
        yield Plot("training", "Training of the reference networks.", plot_training(history, f"{title}: training"))
    history = read_cells(source.folder, _typical(cells, 6), "history.csv", HISTORY_COLUMNS)
    if (
        {"epoch", "valid_top1"} <= set(history)
        and history["epoch"].nunique() > 2
        and history["valid_top1"].notna().any()
    ):
        figure = plot_retraining(history, naming.names, f"{title}: retraining")
        yield Plot("retraining", "Retraining of the compressed networks, mean over networks.", figure)
    yield from _ranks(source, naming, done, cells, title)


def _convergence(source: Source, naming: Naming, frame: DataFrame, suffix: str) -> Iterator[Plot]:
    """Accuracy and distance step by step, where a variant's networks were made in mode lc."""
    cells = compressed(frame)
    history = read_cells(source.folder, _typical(cells, 6), "history.csv", LC_COLUMNS)
    if not set(LC_COLUMNS) <= set(history):
        return
    history = history[history["iteration"].notna()]
    if history["iteration"].nunique() < 2:
        return
    variant = str(frame["variant"].iloc[0])
    title = f"{cells['network'].iloc[0]} on {cells['dataset'].iloc[0]}{f', {variant}' if variant else ''}: L-C"
    caption = f"Learning and compressing in turn, mean over networks{f', {variant}' if variant else ''}."
    yield Plot(f"convergence{suffix}", caption, plot_convergence(history, naming.names, title))


def _ranks(source: Source, naming: Naming, done: DataFrame, cells: DataFrame, title: str) -> Iterator[Plot]:
    """Effective ranks, of those networks that were measured."""
    reference = read_cells(source.folder, done[done["method"] == REFERENCE], "ranks.csv", RANK_COLUMNS)
    ranks = read_cells(source.folder, cells, "ranks.csv", RANK_COLUMNS)
    found = [frame for frame in (reference, ranks) if set(RANK_COLUMNS) <= set(frame)]
    if not found:
        return
    reference, ranks = shares_of(found, reference), shares_of(found, ranks)
    if reference["epoch"].nunique() > 1:
        figure = plot_rank_training(reference, f"{title}: effective rank in training")
        yield Plot("ranks-training", training_seen(reference), figure)
    ranks = ranks[ranks["keep_target"].notna()] if len(ranks) else ranks  # a size of its own stands on no such axis
    if ranks.empty:
        return
    figure = plot_rank_keeps(ranks, reference, naming, f"{title}: effective rank")
    yield Plot("ranks-keep", keeps_seen(ranks, reference, naming), figure)
    if ranks["epoch"].nunique() > 1:
        typical = ranks[ranks["keep_target"].isin(typical_keeps(list(ranks["keep_target"]), 6))]
        figure = plot_rank_curves(typical, naming, f"{title}: effective rank in retraining")
        yield Plot("ranks-retraining", retraining_seen(ranks, naming), figure)


def _typical(cells: DataFrame, count: int) -> DataFrame:
    """The cells at a few keep ratios of the grid, and those without one."""
    keeps = typical_keeps(list(cells["keep_target"]), count)
    return cells[cells["keep_target"].isin(keeps) | cells["keep_target"].isna()]
