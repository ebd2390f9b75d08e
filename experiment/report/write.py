"""The report of an experiment: every file that is made from its folder alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.files import write_whole
from experiment.report import about, findings
from experiment.report.document import Document, Picture, Section, Text
from experiment.report.figure import save_figure
from experiment.report.history_plot import plot_retraining, plot_training
from experiment.report.html import render_html
from experiment.report.layers_plot import plot_layers, typical_keeps
from experiment.report.markdown import render_markdown
from experiment.report.naming import Naming, naming_of
from experiment.report.plot import plot_tradeoff
from experiment.report.source import REFERENCE, Source, read_cells, read_source
from experiment.report.stamp import OUTPUTS, made_from, plots_of, write_stamp
from experiment.report.summary import compressed, prune_only
from experiment.report.sweep import is_retrain_sweep, plot_retrain_sweep
from experiment.report.table import latex_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

HARD = 0.1  # keep ratio from which a logarithmic axis says more
MODES = {"retrain": "one-shot", "cascade": "cascade", "cascade-rewind": "cascade with rewinding"}
MAIN = "tradeoff-top1-parameters"
STEMS = ("tradeoff-", "layers", "training", "retraining", "sweep-")


@dataclass(frozen=True)
class Report:
    """The files that were written.

    Attributes:
        plots: PDF and PNG of every plot.
        markdown, html, table: report.md, report.html and table.tex.
    """

    plots: list[Path]
    markdown: Path
    html: Path
    table: Path

    @property
    def main_plots(self) -> list[Path]:
        """The PNGs to look at first: of a sweep over retraining its summary, else top1 against parameters removed."""
        pngs = [path for path in self.plots if path.suffix == ".png"]
        sweeps = [path for path in pngs if path.stem == "sweep-parameters"]
        return sweeps or [path for path in pngs if path.stem.startswith(MAIN) and not path.stem.endswith("-log")]


def write_report(folder: Path | str) -> Report:
    """Draw the plots and write report.md, report.html and table.tex of the experiment in `folder` from its files alone.

    Works at any moment: with some cells done, with none, or with all failed. Plots of an earlier report that have no
    place in this one are removed, and a report that is up to date is left as it is.

    Raises: StoreError: the folder is no experiment's, or a file in it is damaged.
    """
    folder = Path(folder)
    stamp = made_from(folder)  # before reading: what a worker writes meanwhile makes the next report
    drawn = plots_of(folder, stamp)
    if drawn is not None:
        return Report(drawn, *(folder / name for name in OUTPUTS))
    source = read_source(folder)
    naming = naming_of(source.parameters)
    plots: list[Path] = []
    pictures = []
    for stem, caption, figure in _figures(source, naming):
        written = save_figure(figure, source.folder / "plots" / stem)
        plots += written
        pictures.append(Picture(written[-1], caption))
    _remove_others(source.folder / "plots", plots)
    document = _document(source, naming, pictures)
    report = Report(plots, *(source.folder / name for name in OUTPUTS))
    write_whole(report.markdown, render_markdown(document, source.folder))
    write_whole(report.html, render_html(document))
    write_whole(report.table, latex_table(source.results, names=naming.names))
    write_stamp(folder, stamp, plots)
    return report


def _document(source: Source, naming: Naming, pictures: list[Picture]) -> Document:
    tables = list(findings.every_keep_ratio(source, naming))
    heading = Section("Every keep ratio", [Text("A table a method; the same numbers stand in results.csv.")])
    found = (
        about.what_was_run(source),
        findings.reference_networks(source),
        findings.potential(source, naming),
        Section("Plots", pictures or [Text("Nothing to draw yet.")]),
        about.what_failed(source, naming),
        *([heading, *tables] if tables else []),
        findings.bytes_of_smallest(source, naming),
        about.how_to_load(source),
        about.environment(source),
        about.definitions(),
    )
    return Document(source.name, [section for section in found if section is not None])


def _figures(source: Source, naming: Naming) -> Iterator[tuple[str, str, Figure]]:
    """Stem of the file, caption and figure of every plot; what has no data is not drawn."""
    variants = list(dict.fromkeys(source.results["variant"]))
    for variant in variants:
        yield from _tradeoffs(source, naming, variant, alone=len(variants) == 1)
    if is_retrain_sweep(source.results):
        yield from _sweeps(source, naming)
    for variant in variants[: 1 if len(variants) > 1 else None]:
        yield from _inside(source, naming, variant)


def _tradeoffs(source: Source, naming: Naming, variant: str, alone: bool) -> Iterator[tuple[str, str, Figure]]:
    frame = source.results[source.results["variant"] == variant]
    cells = compressed(frame)
    if cells.empty:
        return
    suffix = "" if alone else f"-{slug(variant)}"
    of = "" if alone else f", {variant or 'unchanged'}"
    masks = bool((cells["flops_unmasked"] < cells["flops"]).any())
    wanted: list[tuple[str, str, str]] = [("top1", "parameters", "linear"), ("top1", "flops", "linear")]
    if masks and alone:
        wanted.append(("top1", "flops_unmasked", "linear"))
    if alone:
        if cells["keep_parameters"].min() <= HARD:
            wanted.append(("top1", "parameters", "log"))
        if not prune_only(frame) and cells["top1_before_retraining"].notna().any():
            wanted.append(("top1_before_retraining", "parameters", "linear"))
        metrics = [metric for metric in ("top5", "loss") if cells[metric].notna().any()]
        wanted += [(metric, quantity, "linear") for metric in metrics for quantity in ("parameters", "flops")]
    for metric, quantity, scale in wanted:
        figure = _tradeoff(source, naming, frame, metric, quantity, scale)
        stem = f"tradeoff-{metric}-{quantity}{'-log' if scale == 'log' else ''}{suffix}"
        yield stem, _caption(metric, quantity, scale) + of + ".", figure


def _tradeoff(source: Source, naming: Naming, frame: DataFrame, metric: Any, quantity: Any, scale: Any) -> Figure:
    limits = (source.setting("experiments", "plotting", "minVal"), source.setting("experiments", "plotting", "maxVal"))
    return plot_tradeoff(
        frame, quantity, metric, scale=scale, keep_limits=limits, names=naming.names, colors=naming.colors,
        note=_note(source, frame),
    )  # fmt: skip


def _note(source: Source, frame: DataFrame) -> str:
    epochs = sorted(set(compressed(frame)["epochs"].dropna()))
    mode = MODES.get(str(source.setting("experiments", "mode")), "")
    amount = "no retraining" if not epochs or epochs == [0] else f"{epochs[-1]:g} epochs of retraining"
    return ", ".join(part for part in (mode, amount) if part)


def _caption(metric: str, quantity: str, scale: str) -> str:
    what = {
        "top1": "Top-1 test accuracy", "top5": "Top-5 test accuracy", "loss": "Test loss",
        "top1_before_retraining": "Top-1 test accuracy before retraining",
    }[metric]  # fmt: skip
    of = {"parameters": "parameters", "flops": "FLOPs", "flops_unmasked": "FLOPs of unmasked weights"}[quantity]
    return f"{what} against the share of {of} {'kept (logarithmic axis)' if scale == 'log' else 'removed'}"


def _sweeps(source: Source, naming: Naming) -> Iterator[tuple[str, str, Figure]]:
    epochs = source.setting("training", "numEpochs")
    if not isinstance(epochs, (int, float)) or epochs < 1 or compressed(source.results).empty:
        return
    for quantity in ("parameters", "flops"):
        figure = plot_retrain_sweep(
            source.results, epochs, quantity=quantity, names=naming.names, colors=naming.colors
        )  # fmt: skip
        what = "parameters" if quantity == "parameters" else "FLOPs"
        yield f"sweep-{quantity}", f"Largest share of {what} removed against the amount of retraining.", figure


def _inside(source: Source, naming: Naming, variant: str) -> Iterator[tuple[str, str, Figure]]:
    """Budgets of layers and curves of training, of the first variant."""
    frame = source.results[(source.results["variant"] == variant) & (source.results["status"] == "done")]
    references = frame[frame["method"] == REFERENCE]
    cells = frame[frame["method"] != REFERENCE]
    title = "" if frame.empty else f"{frame.iloc[0]['network']} on {frame.iloc[0]['dataset']}"
    drawn = cells[cells["keep_target"].isin(typical_keeps(list(cells["keep_target"]))) | cells["keep_target"].isna()]
    layers = read_cells(source.folder, drawn[drawn["method"] != "Fake"], "layers.csv")
    if len(layers) and {"layer", "parameters", "parameters_before"} <= set(layers):
        yield (
            "layers",
            "Share of every layer's parameters that is kept, mean over networks.",
            plot_layers(layers, naming.names, f"{title}: parameters kept in every layer"),
        )
    history = read_cells(source.folder, references, "history.csv")
    if "epoch" in history and history["epoch"].nunique() > 1:
        yield "training", "Training of the reference networks.", plot_training(history, f"{title}: training")
    history = read_cells(
        source.folder, cells[cells["keep_target"].isin(typical_keeps(list(cells["keep_target"]), 6))], "history.csv"
    )
    if {"epoch", "valid_top1"} <= set(history) and history["epoch"].nunique() > 2:
        yield (
            "retraining",
            "Retraining of the compressed networks, mean over networks.",
            plot_retraining(history, naming.names, f"{title}: retraining"),
        )


def slug(variant: str) -> str:
    """A variant's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", variant).strip("-.") or "unchanged"


def _remove_others(plots: Path, written: list[Path]) -> None:
    """Delete plots of an earlier report; files with other names are the user's and stay."""
    for path in plots.glob("*") if plots.is_dir() else ():
        if path not in written and path.suffix in (".pdf", ".png") and path.name.startswith(STEMS):
            path.unlink(missing_ok=True)
