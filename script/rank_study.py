"""Plot the rank of layers: effective rank per epoch, and accuracy against the rank of a single factored layer.

    python script/rank_study.py                                     # every such experiment under data/results
    python script/rank_study.py param/mnist/rank/model10.yaml       # plots/ranks-training
    python script/rank_study.py param/mnist/rank/dropout.yaml       # plots/ranks-variants
    python script/rank_study.py param/mnist/rank/onelayer.yaml      # plots/onelayer

Effective ranks need `experiments.measure: [rank]` in the parameter file. Runs from any folder, as a program or as a
notebook (jupytext --to notebook script/rank_study.py).
"""

# %% Options
from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from experiment.errors import ExperimentError
from experiment.report import LabelStyles, Source, find_experiments, read_cells, read_source
from experiment.report.label_styles import COLORS
from experiment.report.notebook import in_notebook, show_pictures, stop
from experiment.report.plots.curves import (
    REFERENCE_NAME,
    draw_curve,
    draw_keep_ratios,
    draw_reference,
    log_ticks,
    place_keep_legend,
    plain_ticks,
    shades_of,
    whole_ticks,
)
from experiment.report.plots.effective_rank import RANK_COLUMNS, with_shares
from experiment.report.plots.figure import (
    new_figure,
    place_legend,
    save_figure,
    set_common_labels,
    set_title,
    small_panels,
)
from experiment.report.plots.layers import typical_keeps
from experiment.report.primary_metric import primary_metric
from experiment.report.results_table import compressed, reference_rows
from experiment.report.words.titles import axis_label, metric_title, network_on_dataset, variant_in_words

parser = argparse.ArgumentParser(description="Plot the rank of layers.")
parser.add_argument(
    "experiments", nargs="*", metavar="PARAM", help="parameter files, experiments' folders or folders above"
)
parser.add_argument("--results", type=Path, metavar="DIR", help="folder of all results (default: data/results)")
arguments = parser.parse_args([] if in_notebook() else None)  # in a notebook, edit the list

LAYER_COLUMNS = ("layer", "rank", "relative_error", "relative_error_exact")
CELL = ["variant", "label", "net", "repetition", "keep_target"]
MOST_LINES = len(COLORS)  # layers with a curve each; of more layers, only the mean and the range are drawn
SHARE = "Effective rank (% of full rank)"

# Each function yields the name of a plot, the figure, and the table that is printed.
Drawn = Iterator[tuple[str, object, pd.DataFrame]]


# %% Effective rank per epoch of training: one curve per layer
def draw_training(source: Source, ranks: pd.DataFrame) -> Drawn:
    """The reference networks, mean over networks."""
    own = ranks[(ranks["method"] == "Reference") & (ranks["variant"] == ranks["variant"].iloc[0])]
    if own["epoch"].nunique() < 2:
        return
    by_layer = 100 * own.groupby(["layer", "epoch"], sort=False)["share"].mean().unstack("layer")
    figure, (axes,) = new_figure(1, panel_width=4.5)
    mean = by_layer.mean(axis=1)
    (line,) = axes.plot(mean.index, mean, color="#555555", linewidth=2.2, linestyle=(0, (6, 2)))
    entries = [(line, "mean over layers")]
    if by_layer.shape[1] <= MOST_LINES:
        for color, (name, share) in zip(COLORS, by_layer.items(), strict=False):
            entries += [(line, str(name)) for line in axes.plot(share.index, share, color=color, linewidth=1.4)]
    else:
        low, high = by_layer.min(axis=1), by_layer.max(axis=1)
        band = axes.fill_between(by_layer.index, low, high, color=COLORS[0], alpha=0.18, linewidth=0)
        entries.append((band, f"smallest to largest\nof {by_layer.shape[1]} layers"))
    label_epochs([axes], by_layer.max(axis=None))
    set_common_labels(figure, "Epoch", SHARE)
    place_legend(figure, entries)
    set_title(figure, f"{network_on_dataset(source.results)}: effective rank in training")
    yield "ranks-training", figure, by_layer.iloc[[0, -1]].T


# %% Effective rank per epoch of training: one panel per layer, one curve per variant
def draw_variants(source: Source, ranks: pd.DataFrame) -> Drawn:
    """Variants that train reference networks of their own."""
    rows, own = reference_rows(source.results), ranks[ranks["method"] == "Reference"]
    variants, layers = list(dict.fromkeys(own["variant"])), list(dict.fromkeys(own["layer"]))
    few = 1 < len(variants) <= len(COLORS) and len(layers) <= 6
    if not few or rows["cell"].nunique() < len(rows) or own["epoch"].nunique() < 2:
        return
    figure, panels = small_panels([str(layer) for layer in layers], most_columns=3)
    means = 100 * own.groupby(["layer", "variant", "epoch"])["share"].mean()
    for axes, layer in zip(panels, layers, strict=True):
        lines = [
            axes.plot(means[layer, v].index, means[layer, v], color=color, marker=".", linewidth=1.4)[0]
            for color, v in zip(COLORS, variants, strict=False)
        ]
    label_epochs(panels, float(means.max()))
    set_common_labels(figure, "Epoch", SHARE)
    place_legend(figure, list(zip(lines, map(variant_in_words, variants), strict=True)))
    set_title(figure, f"{network_on_dataset(source.results)}: effective rank in training")
    last = own[own["epoch"] == own.groupby("variant")["epoch"].transform("max")]
    yield "ranks-variants", figure, 100 * last.groupby(["layer", "variant"], sort=False)["share"].mean().unstack()


# %% Effective rank per epoch of retraining: one panel per label, one curve per keep ratio
def draw_retraining(source: Source, ranks: pd.DataFrame, styles: LabelStyles) -> Drawn:
    """Compressed networks of the first variant, mean over layers and networks."""
    own = ranks[(ranks["method"] != "Reference") & (ranks["variant"] == ranks["variant"].iloc[0])]
    own = own[own["keep_target"].isin(typical_keeps(list(own["keep_target"]), 6))]
    if own["epoch"].nunique() < 2:
        return
    means = own.groupby(["label", "net", "repetition", "keep_target", "epoch"], sort=False)["share"].mean()
    means = means.reset_index()
    labels = list(dict.fromkeys(means["label"]))
    figure, panels = small_panels([styles.name(label) for label in labels])
    shades, lines = shades_of(means["keep_target"]), {}
    for axes, label in zip(panels, labels, strict=True):
        lines |= draw_keep_ratios(axes, means[means["label"] == label], "epoch", "share", shades, unit=100)
    label_epochs(panels, 100 * means["share"].max())
    set_common_labels(figure, "Epoch of retraining", f"{SHARE},\nmean over layers")
    place_keep_legend(figure, lines)
    set_title(figure, f"{network_on_dataset(source.results)}: effective rank in retraining")
    table = 100 * means.groupby(["label", "keep_target", "epoch"], sort=False)["share"].mean().unstack("epoch")
    yield "ranks-retraining", figure, table.iloc[:, [0, -1]]


def label_epochs(panels: list, top: float) -> None:
    """One y axis from 0 for all panels, and whole epochs."""
    for axes in panels:
        axes.set_ylim(0, 1.05 * top)
        whole_ticks(axes)


# %% Accuracy and error of the weight against the rank of the only factored layer
def draw_one_layer(source: Source, styles: LabelStyles) -> Drawn:
    """One curve per label and variant; the relative errors (operator norm) once per label, dotted: their bounds."""
    cells = compressed(source.results)
    layers = read_cells(source.folder, cells, "layers.csv", LAYER_COLUMNS)
    factored = layers[layers["rank"].notna()] if set(LAYER_COLUMNS) <= set(layers) else layers[[]]
    if factored.empty or factored["layer"].nunique() != 1 or factored["rank"].nunique() < 2:
        return
    metric = primary_metric(source.results)
    found = factored.merge(cells[[*CELL, metric.name]], on=CELL)
    columns = [metric.name, "relative_error_exact", "relative_error"]
    curves = list(dict.fromkeys(zip(found["label"], found["variant"], strict=True)))
    means = found.groupby(["label", "variant", "rank"])[columns].mean()
    figure, (left, right) = new_figure(2)
    several = found["variant"].nunique() > 1
    names = [styles.name(label) + (f", {variant_in_words(v)}" if several else "") for label, v in curves]
    looks, entries, seen = styles.looks(names), [], set()
    for place, ((label, variant), name) in enumerate(zip(curves, names, strict=True)):
        rows, width = means.loc[label, variant].sort_index(), 1.3 + 1.1 * min(len(curves) - 1 - place, 4)
        figures = metric.scale * rows[metric.name]
        entries.append((draw_curve(left, rows.index, figures, looks[name], linewidth=width), name))
        if label not in seen:
            draw_curve(right, rows.index, rows["relative_error_exact"], looks[name], linewidth=width)
            if ((rows["relative_error"] / rows["relative_error_exact"] - 1).abs() > 0.01).any():
                bound = right.plot(rows.index, rows["relative_error"], color=looks[name].color, linestyle=":")
                entries.append((bound[0], f"{styles.name(label)}: bound of the error"))
        seen.add(label)
    reference = reference_rows(source.results).drop_duplicates("cell")
    if len(reference):
        value = metric.scale * float(reference[metric.name].mean())
        entries.append((draw_reference(left, value), REFERENCE_NAME))
    layer = found["layer"].iloc[0]
    left.set_ylabel(axis_label(metric_title(metric.name), metric))
    right.set_ylabel("Relative error of the weight\n(operator norm)")
    right.set_yscale("log")
    log_ticks(right.yaxis)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(found["rank"])))
        plain_ticks(axes)
        axes.set_xlabel(f"Rank of {layer}")
    place_legend(figure, entries)
    set_title(figure, f"{network_on_dataset(source.results)}: rank of {layer}")
    yield "onelayer", figure, (metric.scale * means[metric.name]).unstack("rank")


# %% Draw what each experiment has data for, and print the numbers in percent
def draw_all(source: Source) -> Drawn:
    """Every plot of an experiment."""
    styles = LabelStyles(source.parameters.network_names, source.parameters.network_colors)
    done = source.results[source.results["status"] == "done"]
    ranks = read_cells(source.folder, done, "ranks.csv", RANK_COLUMNS)
    if set(RANK_COLUMNS) <= set(ranks):
        ranks = with_shares(ranks)
        yield from draw_training(source, ranks)
        yield from draw_variants(source, ranks)
        yield from draw_retraining(source, ranks, styles)
    yield from draw_one_layer(source, styles)


count = 0
try:
    for folder in find_experiments(arguments.experiments, arguments.results):
        for stem, figure, table in draw_all(read_source(folder)):
            paths = save_figure(figure, folder / "plots" / stem)
            print(f"\n{folder}: {stem} (%)\n\n{table.round(1).to_string()}\n\n  plot  {paths[0]}\n        {paths[1]}")
            show_pictures(paths[1:])
            count += 1
except ExperimentError as error:
    stop(str(error))
if count == 0:
    stop(
        "No ranks found. Expected an experiment with measure: [rank], or with one factored layer, such as "
        "param/mnist/rank/onelayer.yaml. Run it first: python -m experiment.main PARAM"
    )
