"""One page of all experiments below a folder: what each found, and comparisons of those that may be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.errors import ConfigError, ExperimentError
from experiment.files import write_whole
from experiment.report.across import Part, comparable, order_of, parts_of, together, why_not
from experiment.report.document import Block, Document, Picture, Section, Table, Text
from experiment.report.find_experiments import find_experiments
from experiment.report.html import render_html
from experiment.report.label_styles import LabelStyles
from experiment.report.markdown import render_markdown
from experiment.report.plots.figure import plot_files, save_figure
from experiment.report.plots.tradeoff import plot_tradeoff
from experiment.report.primary_metric import by_metric
from experiment.report.prune_potential import deltas_for, prune_potential
from experiment.report.results_folder import Source, read_source
from experiment.report.results_table import references
from experiment.report.words import numbers
from experiment.report.words.ranking import best_methods
from experiment.report.words.titles import column_title, network_on_dataset

if TYPE_CHECKING:
    from pandas import DataFrame

NAME = "catalogue"


def write_catalogue(results: Path) -> tuple[Path, Path]:
    """Write catalogue.html and catalogue.md into the folder of all results; returns their paths.

    Experiments appear in one plot and one ranking only where network, data, metric and reference networks agree; of the
    others the page says why not. Folders that cannot be read are listed with the reason.

    Raises: ConfigError: there are no experiments.

    Example:
        >>> write_catalogue(Path("data/results"))
        (PosixPath('data/results/catalogue.html'), PosixPath('data/results/catalogue.md'))
    """
    sources, unreadable, folders = [], [], find_experiments((), results)
    if not folders:
        raise ConfigError(f"no experiments below {results}. Expected a folder of results, such as data/results.")
    for folder in folders:
        try:
            sources.append(read_source(folder))
        except ExperimentError as error:
            unreadable.append([os.path.relpath(folder, results), str(error)])
    parts = parts_of(sources)
    groups = comparable(parts)
    sections = [
        Section("Experiments", [_overview(sources, results)]),
        *(_group(group, results, place) for place, group in enumerate(g for g in groups if len(g) > 1)),
        *_apart(groups),
    ]
    if unreadable:
        sections.append(Section("Not readable", [Table(["Folder", "Reason"], unreadable, words=True)]))
    document = Document("All experiments", sections)
    html, markdown = (results / f"{NAME}.{ending}" for ending in ("html", "md"))
    write_whole(html, render_html(document))
    write_whole(markdown, render_markdown(document, results))
    return html, markdown


def _overview(sources: Sequence[Source], results: Path) -> Table:
    header = ["Experiment", "Network", "Metric", "Uncompressed", "Allowed", "Removed (%)", "Method", "Cells", "Report"]
    return Table(header, [_row(s, results) for s in sources], words=True)


def _row(source: Source, results: Path) -> list[str]:
    rows = source.results
    done = int((rows["status"] == "done").sum())
    report = os.path.relpath(source.folder / "report.html", results)
    metric, own = next(by_metric(rows))
    if not done:
        return [source.name, "", "", "", "", "", "", "0", report]
    found, delta = references(own), deltas_for(own)[2]
    potential = prune_potential(own, delta).sort_values("removed", ascending=False)
    best = potential.iloc[0] if len(potential) and potential["removed"].iloc[0] > 0 else None
    return [
        source.name, network_on_dataset(rows), column_title(metric),
        numbers.spread(found[metric.name].mean(), found[metric.name].std(), metric.unit == "fraction"),
        metric.limit(delta), numbers.MISSING if best is None else numbers.percent(float(best["removed"])),
        numbers.MISSING if best is None else LabelStyles(source.parameters.network_names).plain(str(best["label"])),
        str(done), report,
    ]  # fmt: skip


def _group(group: Sequence[Part], results: Path, place: int) -> Section:
    rows = together(group)
    title = f"{network_on_dataset(rows)}: {', '.join(part.name for part in group)}"
    ranking = best_methods(order_of(group, rows), LabelStyles())
    blocks: list[Block] = [_picture(rows, results, place), *(ranking.blocks if ranking is not None else ())]
    return Section(title, blocks)


def _picture(rows: DataFrame, results: Path, place: int) -> Picture:
    stem = results / f"{NAME}-plots" / str(place)
    save_figure(plot_tradeoff(rows), stem)
    return Picture(plot_files(stem)[-1], "All methods of these experiments, which share their reference networks.")


def _apart(groups: Sequence[Sequence[Part]]) -> Iterator[Section]:
    """Why groups of the same network and data are not compared with each other."""
    firsts = [group[0] for group in groups]
    reasons = [
        [one.name, two.name, why_not(one, two)]
        for place, one in enumerate(firsts)
        for two in firsts[place + 1 :]
        if one.basis[:2] == two.basis[:2]
    ]
    if reasons:
        text = Text("Experiments with the same network and dataset whose figures are not comparable.")
        yield Section("Not compared", [text, Table(["Experiment", "and", "because"], reasons, words=True)])
