"""Parts of reports for the terminal: Pareto fronts, and comparisons of several experiments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment.errors import ConfigError
from experiment.escaping import one_line
from experiment.files import safe_name
from experiment.report.across import order_of, parts_of, together
from experiment.report.document import Section, Table, Text
from experiment.report.find_experiments import default_results
from experiment.report.label_styles import LabelStyles
from experiment.report.plots.figure import save_figure
from experiment.report.plots.tradeoff import plot_tradeoff
from experiment.report.results_folder import Source, read_source
from experiment.report.words.ranking import best_methods
from experiment.report.words.spending import pareto_fronts


@dataclass(frozen=True)
class ComparedExperiments:
    """The ranking of all methods of several experiments as text, and the PNG of their trade-offs."""

    text: str
    plot: Path


def compare_experiments(folders: Sequence[Path], results: Path | None = None) -> ComparedExperiments:
    """Compare the methods of several experiments, and draw their trade-offs into `compared/` of the results folder.

    Raises: ConfigError: network, data, metric or reference networks of two of them differ, or there is only one.

    Example:
        >>> print(compare_experiments([Path("data/results/a"), Path("data/results/b")]).text)
    """
    parts = parts_of([read_source(folder) for folder in folders])
    if len(parts) < 2:
        raise ConfigError(f"--compare: expected at least two experiments with finished cells. Got {len(parts)}.")
    rows = together(parts)
    ranking = best_methods(order_of(parts, rows), LabelStyles())
    name = safe_name(" and ".join(part.name for part in parts))
    _, png = save_figure(plot_tradeoff(rows), (results or default_results()) / "compared" / name)
    text = "The experiments have no keep ratio in common." if ranking is None else _text(ranking)
    return ComparedExperiments(text, png)


def pareto_table(source: Source, styles: LabelStyles) -> str:
    """The networks on the Pareto fronts of an experiment, for the terminal."""
    found = pareto_fronts(source, styles)
    return "No Pareto front yet: run the experiment, which marks it." if found is None else _text(found)


def _text(section: Section) -> str:
    """The paragraphs and tables of a section, without the escapes of Markdown."""
    parts = [section.title]
    for block in section.blocks:
        if isinstance(block, Text):
            parts.append(one_line(block.text))
        elif isinstance(block, Table):
            rows = [list(map(one_line, row)) for row in (block.header, *block.rows)]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            parts.append("\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows))
    return "\n\n".join(parts)
