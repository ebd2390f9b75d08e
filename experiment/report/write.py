"""Write the report of an experiment, from its folder alone: plots, report.md, report.html, and two tables."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiment.escaping import csv_table
from experiment.files import remove_all, write_whole
from experiment.report.comparisons import COLUMNS, Comparisons, as_table, compare
from experiment.report.document import Document, Picture, Section, Text
from experiment.report.html import render_html
from experiment.report.label_styles import LabelStyles
from experiment.report.markdown import render_markdown
from experiment.report.plots import gallery
from experiment.report.plots.figure import plot_files, save_figure
from experiment.report.plots.gallery import Kind, plots_of
from experiment.report.plots.svg import svg_of
from experiment.report.results_folder import Source, read_source, require_experiment
from experiment.report.up_to_date import OUTPUTS, made_from, own_plots, stamped_plots, write_stamp
from experiment.report.words import (
    about,
    advice,
    deployment,
    findings,
    limits,
    ranking,
    sensitivity,
    spending,
    test_sets,
    tuning,
)
from experiment.report.words.potential_tables import latex_table
from experiment.run.disk.store import Store
from experiment.run.signals import raise_if_stopped


@dataclass(frozen=True)
class Report:
    """The files of a report.

    Attributes:
        plots: PDF and PNG of every plot.
        markdown, html, table, comparisons: report.md, report.html, table.tex and comparisons.csv.
    """

    plots: list[Path]
    markdown: Path
    html: Path
    table: Path
    comparisons: Path

    @property
    def main_plots(self) -> list[Path]:
        """The PNGs to look at first: of a retraining sweep, else of compared variants, else of trade-offs."""
        pngs = [path for path in self.plots if path.suffix == ".png"]
        sweeps = [path for path in pngs if path.stem == "sweep-parameters"]
        compared = [path for path in pngs if path.stem.startswith("compare-")]
        tradeoffs = [path for path in pngs if path.stem.startswith("tradeoff-") and not path.stem.endswith("-log")]
        main = "-".join(tradeoffs[0].stem.split("-")[:3]) if tradeoffs else ""  # the primary metric comes first
        return sweeps or compared or [path for path in tradeoffs if path.stem.startswith(main)]


def write_report(folder: Path | str, kinds: Sequence[Kind] | None = None) -> Report:
    """Draw the plots and write report.md, report.html, table.tex and comparisons.csv of an experiment.

    Works at any time: with some cells finished, with none, or with all failed. Plots of an earlier report that are not
    part of this one are removed; a report that is up to date is not written again. If several processes write the same
    report, one of them does so at a time.

    Args:
        folder: the experiment's folder.
        kinds: kinds of plots to draw, entries of `gallery.GALLERY`; by default all.

    Raises: StoreError: this is no experiment's folder, or one of its files is damaged.

    Example:
        >>> write_report("data/results/digits/prune/lenet5").html
        PosixPath('data/results/digits/prune/lenet5/report.html')
    """
    folder = Path(folder)
    require_experiment(folder)
    with Store(folder).lock("report", "writes this report"), _only_figures_collected():
        return _written(folder, gallery.GALLERY if kinds is None else kinds)


@contextmanager
def _only_figures_collected() -> Iterator[None]:
    """No collection of cyclic garbage but those of figures: Python's own go through all objects a dozen times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _written(folder: Path, kinds: Sequence[Kind]) -> Report:
    drawn = stamped_plots(folder, made_from(folder, kinds))
    if drawn is not None:
        return Report(drawn, *(folder / name for name in OUTPUTS))
    stamp, source = _snapshot(folder, kinds)
    styles = LabelStyles(source.parameters.network_names, source.parameters.network_colors)
    earlier = own_plots(folder)
    plots: list[Path] = []
    pictures = []
    for plot in plots_of(source, styles, kinds):
        raise_if_stopped()  # plotting libraries may swallow an interruption
        files = plot_files(folder / "plots" / plot.stem)
        plots += files
        write_stamp(folder, None, list(dict.fromkeys([*earlier, *plots])))  # first: so that a killed report is removed
        figure = plot.draw()
        save_figure(figure, folder / "plots" / plot.stem)
        pictures.append(Picture(files[-1], plot.caption, svg_of(figure, plot.stem), plot.heat_maps))
        gc.collect(0)  # the figure before
    remove_all(set(earlier) - set(plots))
    found = compare(folder, source.results)
    document = _document(source, found, styles, pictures)
    report = Report(plots, *(folder / name for name in OUTPUTS))
    write_whole(report.markdown, render_markdown(document, folder))
    write_whole(report.html, render_html(document))
    pairs = as_table(found.rankings).itertuples(index=False)
    write_whole(report.comparisons, csv_table(COLUMNS, [dict(zip(COLUMNS, pair, strict=True)) for pair in pairs]))
    write_whole(report.table, latex_table(source.results, styles=styles))
    write_stamp(folder, stamp, plots)
    return report


def _snapshot(folder: Path, kinds: Sequence[Kind]) -> tuple[str, Source]:
    """The files of an experiment as they were at one moment, and their stamp, although others may rewrite them."""
    while True:
        stamp = made_from(folder, kinds)
        source = read_source(folder)
        if made_from(folder, kinds) == stamp:
            return stamp, source


def _document(source: Source, found: Comparisons, styles: LabelStyles, pictures: Sequence[Picture]) -> Document:
    tables = list(findings.every_keep_ratio(source, styles))
    heading = Section("All keep ratios", [Text("One table per method; results.csv has the same numbers.")])
    sections = (
        advice.in_short(source, found, styles),
        about.what_was_run(source),
        findings.reference_networks(source),
        findings.potential(source, styles),
        ranking.best_methods(found.rankings, styles),
        spending.pareto_fronts(source, styles),
        spending.time_spent(source, styles),
        limits.limited_quantities(source, styles),
        tuning.tuned_retraining(source, styles),
        deployment.what_to_deploy(source, styles),
        sensitivity.layers_to_leave_whole(source, styles),
        test_sets.potential_on_test_sets(source, styles),
        Section("Plots", pictures or [Text("Nothing to draw.")]),
        about.what_failed(source, styles),
        *([heading, *tables] if tables else []),
        ranking.every_pair(found.rankings, styles),
        findings.bytes_of_smallest(source, styles),
        about.how_to_load(source),
        about.environment(source),
        about.definitions(source),
    )
    return Document(source.name, [section for section in sections if section is not None])
