"""The report of an experiment: every file that is made from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment.files import remove_all, write_whole
from experiment.report.document import Document, Picture, Section, Text
from experiment.report.html import render_html
from experiment.report.markdown import render_markdown
from experiment.report.plots.figure import plot_files, save_figure
from experiment.report.plots.gallery import plots_of
from experiment.report.plots.label_styles import Naming, naming_of
from experiment.report.prune_potential import latex_table
from experiment.report.results_folder import Source, read_source, require_experiment
from experiment.report.up_to_date import OUTPUTS, made_from, own_plots, stamped_plots, write_stamp
from experiment.report.words import about, findings
from experiment.run.signals import raise_if_told

MAIN = "tradeoff-top1-parameters"


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
        """The PNGs to look at first: the summary of a sweep over retraining, variants compared, or trade-offs."""
        pngs = [path for path in self.plots if path.suffix == ".png"]
        sweeps = [path for path in pngs if path.stem == "sweep-parameters"]
        compared = [path for path in pngs if path.stem.startswith("compare-")]
        return (
            sweeps
            or compared
            or [path for path in pngs if path.stem.startswith(MAIN) and not path.stem.endswith("-log")]
        )


def write_report(folder: Path | str) -> Report:
    """Draw the plots and write report.md, report.html and table.tex of the experiment in `folder` from its files alone.

    Works at any moment: with some cells done, with none, or with all failed. Plots of an earlier report that have no
    place in this one are removed, and a report that is up to date is left as it is. Of several processes one writes at
    a time, from what the others have left until then.

    Raises: StoreError: the folder is no experiment's, or a file in it is damaged.
    """
    folder = Path(folder)
    require_experiment(folder)
    from experiment.run.disk.store import Store  # only here: it brings the schema of parameter files with it

    with Store(folder).lock("report", "writes this report"):
        return _written(folder)


def _written(folder: Path) -> Report:
    stamp = made_from(folder)
    drawn = stamped_plots(folder, stamp)
    if drawn is not None:
        return Report(drawn, *(folder / name for name in OUTPUTS))
    stamp, source = _snapshot(folder)
    naming = naming_of(source.parameters)
    earlier = own_plots(folder)
    plots: list[Path] = []
    pictures = []
    for stem, caption, figure in plots_of(source, naming):
        raise_if_told()  # libraries lose an interruption that meets them at the wrong moment
        files = plot_files(folder / "plots" / stem)
        plots += files
        write_stamp(
            folder, None, list(dict.fromkeys([*earlier, *plots]))
        )  # first: what a kill leaves is a report's, too
        save_figure(figure, folder / "plots" / stem)
        pictures.append(Picture(files[-1], caption))
    remove_all(set(earlier) - set(plots))
    document = _document(source, naming, pictures)
    report = Report(plots, *(folder / name for name in OUTPUTS))
    write_whole(report.markdown, render_markdown(document, folder))
    write_whole(report.html, render_html(document))
    write_whole(report.table, latex_table(source.results, names=naming.names))
    write_stamp(folder, stamp, plots)
    return report


def _snapshot(folder: Path) -> tuple[str, Source]:
    """The files of an experiment as they were at one moment, although others may rewrite them, and their stamp."""
    while True:
        stamp = made_from(folder)
        source = read_source(folder)
        if made_from(folder) == stamp:
            return stamp, source


def _document(source: Source, naming: Naming, pictures: Sequence[Picture]) -> Document:
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
