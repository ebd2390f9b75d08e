"""The summary at the end of an experiment: how its cells ended, and where the results are."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiment.errors import plural
from experiment.run.disk.results_table import requested
from experiment.run.disk.store import TRACEBACK, Store
from experiment.run.grid.plan import ExperimentPlan

Results = Mapping[str, Mapping[str, Any]]


class WrittenReport(Protocol):
    """The files of a report, which `experiment.report` writes."""

    @property
    def markdown(self) -> Path: ...

    @property
    def html(self) -> Path: ...

    @property
    def main_plots(self) -> Sequence[Path]: ...


def summarise(
    plan: ExperimentPlan,
    results: Results,
    store: Store,
    report: WrittenReport,
    say: Callable[[str], None],
    *,
    debug: bool,
) -> None:
    """Print how the cells ended, and where the results are."""
    status = Counter(str(results[cell.key]["status"]) if cell.key in results else "pending" for cell in plan.cells)
    say(f"{plan.name}: " + ", ".join(f"{number} {name}" for name, number in sorted(status.items())) + " cells")
    folders = store.cell_folders()
    if without := _without_ranks(plan, results, folders):
        lc = plan.file.parameters.experiments.mode == "lc"
        why = "mode lc records reference networks only" if lc else "computed before measure: [rank] was set, and kept"
        say(f"  {plural(without, 'cell')} without ranks.csv: {why}")
    for cell in plan.cells:
        if results.get(cell.key, {}).get("status") == "failed":
            say(f"  failed: {cell.label} net {cell.net} {cell.size}: {results[cell.key].get('error')}")
            for line in _traceback(folders.get(cell.key), debug):
                say(f"    {line}")
    if status["failed"]:
        say("  fix the cause, then run the command again with --retry-failed")
    say(f"  results   {_shown(store.folder / 'results.csv')}")
    say(f"  report    {_shown(report.markdown)}, {_shown(report.html)}")
    for plot in report.main_plots:
        say(f"  plot      {_shown(plot)}")


def _traceback(folder: Path | None, debug: bool) -> Iterator[str]:
    """Where the traceback of a failed cell is, if there is one, and with `debug` its lines."""
    path = None if folder is None else folder / TRACEBACK
    if path is not None and path.is_file():
        yield f"traceback: {_shown(path)}"
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines() if debug else ()


def _without_ranks(plan: ExperimentPlan, results: Results, folders: Mapping[str, Path]) -> int:
    """Number of finished cells that have no ranks although the parameter file requests them."""
    variants = requested(plan, "rank")
    done = [c.key for c in plan.cells if c.variant in variants and results.get(c.key, {}).get("status") == "done"]
    return sum(not (folders[key] / "ranks.csv").is_file() for key in done if key in folders)


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
