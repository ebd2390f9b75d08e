"""The plots of a report: which ones an experiment has, with file names and captions. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from experiment.config.modes import base_mode
from experiment.files import safe_name
from experiment.report.deployments import cost_in_words, costs_of, deployments, runtimes_of
from experiment.report.label_styles import LabelStyles
from experiment.report.mean_and_spread import Quantity
from experiment.report.plots.compare_variants import comparisons, plot_variants
from experiment.report.plots.cost import plot_cost
from experiment.report.plots.deployment import plot_deployment
from experiment.report.plots.effective_rank import RANK_COLUMNS, plot_effective_rank, with_shares
from experiment.report.plots.examples import MOST_EXAMPLES, plot_examples, read_examples
from experiment.report.plots.history import LC_COLUMNS, plot_convergence, plot_retraining, plot_training
from experiment.report.plots.layers import heat_maps, plot_layers, typical_keeps
from experiment.report.plots.retrain_sweep import is_retrain_sweep, plot_retrain_sweep
from experiment.report.plots.sensitivity import plot_sensitivity
from experiment.report.plots.test_sets import (
    excess_errors,
    noise_levels,
    plot_excess_error,
    plot_noise,
    plot_potential_on_test_sets,
)
from experiment.report.plots.tradeoff import Scale, plot_tradeoff
from experiment.report.primary_metric import primary_metric
from experiment.report.results_folder import Source, read_cells
from experiment.report.results_table import (
    compressed,
    counts_bytes,
    latency_columns,
    prune_only,
    reference_rows,
    variants_of,
)
from experiment.report.sensitivity import read_sensitivity
from experiment.report.words import titles
from experiment.report.words.test_sets import comparable_rows, has_several
from experiment.report.words.titles import capitalized

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

STRONG = 0.1  # keep ratio from which a logarithmic axis shows more
LAYER_COLUMNS = ("layer", "parameters_before", "parameters")
HISTORY_COLUMNS = ("epoch", "loss", "valid_loss")


@dataclass(frozen=True)
class Plot:
    """One plot of a report: the name of its files without ending, the text below it, and how to draw it.

    `heat_maps` are those that report.html shows in its place, where a slider can choose among them.
    """

    stem: str
    caption: str
    draw: Callable[[], Figure]
    heat_maps: Mapping[str, Any] | None = None


Kind = Callable[[Source, LabelStyles], Iterator[Plot]]


def plots_of(source: Source, styles: LabelStyles, kinds: Sequence[Kind] | None = None) -> Iterator[Plot]:
    """Every plot that the experiment has data for, with unique file names.

    Args:
        kinds: kinds of plots to include; by default GALLERY.
    """
    seen: set[str] = set()
    for kind in GALLERY if kinds is None else kinds:
        for plot in kind(source, styles):
            stem, number = plot.stem, 2
            while stem.lower() in seen:  # file systems may ignore case
                stem, number = f"{plot.stem}~{number}", number + 1
            seen.add(stem.lower())
            yield replace(plot, stem=stem)


def comparisons_of_variants(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """The primary metric against parameters, with all variants in one plot, if they share their reference networks."""
    names = ", ".join(map(titles.variant_in_words, variants_of(source.results)))
    note = titles.mode_in_words(map(source.settings_of, variants_of(source.results)))
    for label, rows in comparisons(source.results):
        scale: Scale = "log" if compressed(rows)["keep_parameters"].min() <= STRONG * 1.1 else "linear"
        draw = partial(plot_variants, rows, scale=scale, keep_limits=_limits(source), styles=styles, note=note)
        suffix = ("-log" if scale == "log" else "") + (f"-{safe_name(label)}" if label else "")
        metric = primary_metric(rows).name
        yield Plot(f"compare-{metric}-parameters{suffix}", f"{_against(metric, 'parameters', scale)}: {names}.", draw)


def tradeoffs(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """Metrics and loss against parameters and FLOPs; of several variants, the primary metric alone."""
    for variant, suffix, rows in _variants(source):
        if compressed(rows).empty:
            continue
        note = titles.mode_in_words([source.settings_of(variant)])
        for metric, quantity, scale in _axes_of_tradeoffs(source, rows, alone=not suffix):
            draw = partial(
                plot_tradeoff, rows, quantity, metric,
                scale=scale, keep_limits=_limits(source), styles=styles, note=note,
            )  # fmt: skip
            stem = f"tradeoff-{metric}-{quantity}{'-log' if scale == 'log' else ''}{suffix}"
            yield Plot(stem, f"{titles.joined(_against(metric, quantity, scale), variant)}.", draw)


def _axes_of_tradeoffs(source: Source, rows: DataFrame, alone: bool) -> Iterator[tuple[str, Quantity, Scale]]:
    cells, metric = compressed(rows), primary_metric(rows)
    yield metric.name, "parameters", "linear"
    yield metric.name, "flops", "linear"
    if not alone:
        return
    if (cells["flops_unmasked"] < cells["flops"]).any():
        yield metric.name, "flops_unmasked", "linear"
    if counts_bytes(rows):
        yield metric.name, "bytes", "linear"
    if cells["keep_parameters"].min() <= STRONG:
        yield metric.name, "parameters", "log"
    if not prune_only(rows) and cells[metric.before].notna().any():
        yield metric.before, "parameters", "linear"
    if cells["flips"].notna().any():
        yield "flips", "parameters", "linear"
    for name in (*source.other_metrics(rows), "loss"):
        if cells[name].notna().any():
            yield name, "parameters", "linear"
            yield name, "flops", "linear"


def costs(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """The primary metric against measured latency, the file size if sizes were requested, and computing time."""
    for variant, suffix, rows in _variants(source):
        cells = compressed(rows)
        columns = {c: f"latency at batch size {c.rpartition('_b')[2]}" for c in latency_columns(cells)}
        if "bytes_csr" in cells and cells["bytes_csr"].notna().any():
            columns["bytes_file"] = "size of network.pt"
        if cells["seconds"].gt(0).any():
            columns["seconds"] = "computing time"
        note = titles.mode_in_words([source.settings_of(variant)])
        for column, words in columns.items():
            draw = partial(plot_cost, rows, column, styles=styles, note=note)
            title = titles.metric_title(primary_metric(rows).name)
            yield Plot(f"cost-{column}{suffix}", f"{titles.joined(title + ' against ' + words, variant)}.", draw)


def deployment(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """The primary metric against every measured cost in all runtimes, if networks were exported."""
    for variant, suffix, rows in _variants(source):
        if compressed(rows).empty or not runtimes_of(rows):
            continue
        note, title = (
            titles.mode_in_words([source.settings_of(variant)]),
            titles.metric_title(primary_metric(rows).name),
        )
        for cost in costs_of(deployments(rows)):
            draw = partial(plot_deployment, rows, cost, styles=styles, note=note)
            caption = titles.joined(f"{title} against {cost_in_words(cost)} in all runtimes", variant)
            yield Plot(f"deploy-{cost}{suffix}", f"{caption}.", draw)


def test_sets(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """Prune potential and excess error on several test sets."""
    results = comparable_rows(source.every_test)
    if has_several(results) and not compressed(results).empty:
        title = titles.network_on_dataset(results).partition(", tested on")[0]
        draw = partial(plot_potential_on_test_sets, results, styles, title)
        yield Plot("potential-test-sets", "Largest share of parameters removed against the test set.", draw)
        if len(excess_errors(results)):
            caption = "Difference in excess error: loss on the other test sets beyond that on the first, their mean."
            yield Plot("excess-error", caption, partial(plot_excess_error, results, styles, title))


def noise(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """The response to noise at the middle level, if it was measured."""
    for variant, suffix, rows in _variants(source):
        levels = noise_levels(compressed(rows))
        if levels:
            level = levels[len(levels) // 2]
            title = f"{titles.joined(titles.network_on_dataset(rows), variant)}: uniform noise in ±{level}"
            caption = f"Agreement with the reference network under uniform noise in ±{level}."
            yield Plot(f"noise{suffix}", caption, partial(plot_noise, rows, level, styles, title))


def retrain_sweeps(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """Prune potential against the amount of retraining, if variants change it."""
    epochs = source.parameters.training.num_epochs
    if epochs < 1 or not is_retrain_sweep(source.results) or compressed(source.results).empty:
        return
    quantities: tuple[Quantity, ...] = ("parameters", "flops")
    for quantity in quantities:
        draw = partial(plot_retrain_sweep, source.results, epochs, quantity=quantity, styles=styles)
        caption = f"Largest share of {titles.QUANTITIES[quantity]} removed against the amount of retraining."
        yield Plot(f"sweep-{quantity}", caption, draw)


def layers(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """The share of its parameters that every layer keeps; of the first variant."""
    for rows, title in _first_variant(source):
        found = read_cells(source.folder, _compressing(rows), "layers.csv", LAYER_COLUMNS)
        if set(LAYER_COLUMNS) <= set(found) and len(found):
            draw = partial(plot_layers, _typical(found, 3), styles, f"{title}: parameters kept per layer")
            caption = "Share of parameters kept per layer, mean over networks."
            yield Plot("layers", caption, draw, heat_maps(found, styles))


def sensitivity(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """The loss when a layer alone is compressed, if it was measured."""
    for variant, suffix, rows in _variants(source):
        found = read_sensitivity(source, variant)
        if found["loss"].notna().any():
            metric, title = primary_metric(rows), titles.joined(titles.network_on_dataset(rows), variant)
            draw = partial(plot_sensitivity, found, metric, styles, f"{title}: sensitivity of layers")
            caption = f"{capitalized(metric.loss_title)} when one layer alone is compressed, on the validation part."
            yield Plot(f"sensitivity{suffix}", caption, draw)


def training_and_retraining(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """Loss and primary metric per epoch of training and retraining; of the first variant."""
    for rows, title in _first_variant(source):
        metric = primary_metric(rows)
        valid = f"valid_{metric.name}"
        columns = (*HISTORY_COLUMNS, metric.name, valid)
        found = read_cells(source.folder, reference_rows(rows), "history.csv", columns)
        if "epoch" in found and found["epoch"].nunique() > 1:
            draw = partial(plot_training, found, f"{title}: training", metric)
            yield Plot("training", "Training of the reference networks.", draw)
        found = read_cells(source.folder, _typical(_compressing(rows), 6), "history.csv", columns)
        measured = {"epoch", valid} <= set(found) and found[valid].notna().any()
        if measured and found["epoch"].nunique() > 2:
            draw = partial(plot_retraining, found, styles, f"{title}: retraining", metric)
            yield Plot("retraining", "Retraining of the compressed networks, mean over networks.", draw)


def effective_ranks(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """Effective rank against the keep ratio, if ranks were measured; of the first variant."""
    for rows, title in _first_variant(source):
        ranks = read_cells(source.folder, rows[rows["status"] == "done"], "ranks.csv", RANK_COLUMNS)
        if set(RANK_COLUMNS) <= set(ranks) and ranks.loc[ranks["method"] != "Reference", "keep_target"].notna().any():
            draw = partial(plot_effective_rank, with_shares(ranks), styles, f"{title}: effective rank")
            caption = "Effective rank (Roy and Vetterli 2007) of the finished networks, mean over layers."
            yield Plot("effective-rank", caption, draw)


def convergence(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """Primary metric and distance per step of networks of mode lc."""
    for variant, suffix, rows in _variants(source):
        if base_mode(source.settings_of(variant).experiments) != "lc":
            continue
        metric = primary_metric(rows)
        columns = (*LC_COLUMNS, f"valid_{metric.name}")
        found = read_cells(source.folder, _typical(_compressing(rows), 6), "history.csv", columns)
        if set(columns) <= set(found) and found["iteration"].nunique() > 1:
            found = found[found["iteration"].notna()]
            title = f"{titles.joined(titles.network_on_dataset(rows), variant)}: L-C"
            caption = f"{titles.joined('Learning and compression steps of L-C, mean over networks', variant)}."
            yield Plot(f"convergence{suffix}", caption, partial(plot_convergence, found, styles, title, metric))


def examples(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """A few test images with their maps and what networks predict; of the first variant and network."""
    for rows, title in _first_variant(source):
        first = rows[rows["net"] == rows["net"].min()]
        cells = _typical(_compressing(first), 3).sort_values("keep_target").groupby("label", sort=False)
        shown = [rows.iloc[len(rows) // 2].to_dict() for _, rows in cells][:MOST_EXAMPLES]  # of medium size
        names = dict.fromkeys(map(str, reference_rows(first)["cell"].head(1)), "reference")
        names |= {str(c["cell"]): f"{styles.name(c['label'])}, keep {c['keep_parameters']:.2g}" for c in shown}
        found = {names[cell]: arrays for cell, arrays in read_examples(source.folder, list(names)).items()}
        if len(found) > 1:
            caption = "Test images, their classes and what networks predict; white has no class."
            yield Plot("examples", caption, partial(plot_examples, found, f"{title}: predictions"))


GALLERY: tuple[Kind, ...] = (
    comparisons_of_variants, tradeoffs, costs, deployment, test_sets, noise, retrain_sweeps, layers, sensitivity,
    training_and_retraining, effective_ranks, convergence, examples,
)  # fmt: skip


def _variants(source: Source) -> Iterator[tuple[str, str, DataFrame]]:
    """Name, suffix of file names and rows of every variant; a single variant has no suffix."""
    variants = variants_of(source.results)
    for variant in variants:
        suffix = f"-{safe_name(variant) if variant else 'unchanged'}" if len(variants) > 1 else ""
        yield variant, suffix, source.results[source.results["variant"] == variant]


def _first_variant(source: Source) -> Iterator[tuple[DataFrame, str]]:
    """The rows of the first variant, and the title of plots about it; nothing if there are no results."""
    for variant, _, rows in list(_variants(source))[:1]:
        yield rows, titles.joined(titles.network_on_dataset(rows), variant)


def _compressing(rows: DataFrame) -> DataFrame:
    """The finished cells of compressed networks, without `Fake`."""
    cells = compressed(rows)
    return cells[cells["method"] != "Fake"]


def _typical(cells: DataFrame, count: int) -> DataFrame:
    """The cells, or their rows of a file, at a few keep ratios of the grid, and those without a keep ratio."""
    keeps = typical_keeps(list(cells["keep_target"]), count)
    return cells[cells["keep_target"].isin(keeps) | cells["keep_target"].isna()]


def _limits(source: Source) -> tuple[float | None, float | None]:
    """The range of keep ratios that the parameter file sets."""
    plotting = source.parameters.experiments.plotting
    return (None, None) if plotting is None else (plotting.min_val, plotting.max_val)


def _against(metric: str, quantity: str, scale: Scale) -> str:
    share = "kept (logarithmic axis)" if scale == "log" else "removed"
    name = titles.capitalized(titles.metric_title(metric))
    return f"{name} against the share of {titles.QUANTITIES[quantity]} {share}"
