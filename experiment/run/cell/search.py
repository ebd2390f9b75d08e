"""The search of a keep ratio: the smallest network within a loss of the primary metric on the validation part.

Each sample is made like an ordinary cell of its keep ratio, in its own folder inside that of the searched cell, and
recorded at once. Of the checkpoints only that of the smallest sample within the loss is kept, from which its network
is made again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter
from torch import nn

from experiment.config import Search
from experiment.errors import InfeasibleBudget, TrainingDiverged
from experiment.files import remove_all
from experiment.lc.keep_search import ROUNDING, search_keep
from experiment.run.cell.events import CountedReport, ReportEvent
from experiment.run.cell.outcome import CellNetwork
from experiment.run.cell.records import read_records, write_records
from experiment.run.grid.cells import Cell
from experiment.tasks.task import Metric

SAMPLES, TABLE = "samples.json", "search.csv"


class MakeCellNetwork(Protocol):
    """Makes the network of an ordinary cell in a folder; see `make_cell_network`."""

    def __call__(self, cell: Cell, folder: Path, report: ReportEvent) -> CellNetwork: ...


@dataclass(frozen=True)
class SearchSample:
    """A sample: a row of search.csv.

    Attributes:
        parameters, valid: size and validation figure of its network; None if there is none.
        needed: the required figure: that of the reference network, worse by the allowed loss.
        within: whether `valid` reaches it.
        epochs: of retraining.
        seconds: of compression, retraining and validation.
        status: done, infeasible or diverged.
        error: why there is no network.
    """

    keep: float
    parameters: int | None
    valid: float | None
    needed: float
    within: bool
    epochs: int | float
    seconds: float
    status: str
    error: str


_SAMPLES = TypeAdapter(list[SearchSample])


@dataclass(frozen=True)
class SearchResult:
    """The samples of a search, and the smallest keep ratio within the loss, or the reason if there is none."""

    samples: Sequence[SearchSample]
    keep: float | None
    metric: Metric
    reason: str = ""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What result.json says about the search; the time is that of all samples."""
        seconds = round(sum(sample.seconds for sample in self.samples), 3)
        keep = {} if self.keep is None else {"keep_found": self.keep}
        return {"samples": len(self.samples), "seconds_retrain": seconds, **keep}

    def table(self) -> list[dict[str, Any]]:
        """The rows of search.csv."""
        column = f"valid_{self.metric.name}"
        return [{column if k == "valid" else k: v for k, v in asdict(s).items()} for s in self.samples]


class CellSearch:
    """The search of a cell's keep ratio; it continues from the samples that an interrupted process recorded.

    Args:
        folder: for the record of samples, and the folder of each.
        measure: the figure of a network on the validation part, not on the test set.
        metric: which figure it is.
        reference: the figure of the reference network.
    """

    def __init__(
        self,
        cell: Cell,
        settings: Search,
        folder: Path,
        *,
        make: MakeCellNetwork,
        measure: Callable[[nn.Module], float],
        metric: Metric,
        reference: float,
    ) -> None:
        self._cell, self._settings, self._folder = cell, settings, folder
        self._make, self._measure = make, measure
        self._metric, self._reference = metric, reference
        self._recorded = {sample.keep: sample for sample in read_records(folder / SAMPLES, _SAMPLES)}

    def run(self, report: ReportEvent) -> SearchResult:
        """Make samples until the search ends.

        Raises: TrainingDiverged: all feasible networks diverged.
        """
        samples: list[SearchSample] = []
        counted = CountedReport(report)

        def is_good(keep: float) -> float:
            sample = self._recorded.get(keep)
            if sample is None:
                sample = self._sample(keep, counted)
                self._record(sample)
            samples.append(sample)
            counted.fill_up_to(len(samples) * self._cell.epochs_retrain / self._cell.samples)
            return float(sample.within)

        settings = self._settings
        keep = search_keep(
            is_good, reference=1.0, accuracy_loss=0.0, samples=settings.samples, smallest=settings.smallest,
        ).keep  # fmt: skip
        counted.fill_up_to(self._cell.epochs_retrain)
        return SearchResult(samples, keep, self._metric, self._why_none(samples) if keep is None else "")

    def make_sample(self, keep: float, report: ReportEvent) -> CellNetwork:
        """Make the network of a sample, from its checkpoint if there is one."""
        epochs = self._cell.epochs_retrain // self._cell.samples
        ordinary = replace(self._cell, keep=keep, epochs_retrain=epochs, samples=0, fixed_size=False)
        return self._make(ordinary, self._folder / str(keep), report)

    def _sample(self, keep: float, report: ReportEvent) -> SearchSample:
        started = time.perf_counter()
        needed = self._metric.worst_allowed(self._reference, self._settings.accuracy_loss)
        try:
            made = self.make_sample(keep, report)
        except (InfeasibleBudget, TrainingDiverged) as error:
            status = "infeasible" if isinstance(error, InfeasibleBudget) else "diverged"
            seconds = round(time.perf_counter() - started, 3)
            return SearchSample(keep, None, None, needed, False, 0, seconds, status, str(error))
        figure = self._measure(made.compressed.network)
        seconds = round(time.perf_counter() - started, 3)
        within, size = self._metric.is_as_good(figure, needed, ROUNDING), made.compressed.count.parameters
        return SearchSample(keep, size, figure, needed, within, made.facts["epochs"], seconds, "done", "")

    def _record(self, sample: SearchSample) -> None:
        """Record a sample, and remove checkpoints that are no longer needed."""
        others = list(self._recorded) if sample.within else [sample.keep]
        self._recorded[sample.keep] = sample
        write_records(self._folder / SAMPLES, list(self._recorded.values()))
        remove_all(self._folder / str(keep) for keep in others)

    def _why_none(self, samples: Sequence[SearchSample]) -> str:
        """Why no network is within the loss.

        Raises: TrainingDiverged: there is no network at all, and not because of the sizes alone.
        """
        metric, reference = self._metric, self._reference
        sign = 1 if metric.better == "higher" else -1
        measured = [(sign * s.valid, -s.keep) for s in samples if s.valid is not None]
        if measured:
            best, keep = max(measured)
            loss, whole = sign * reference - best, abs(reference) or 1.0
            lost = f"{100 * loss:.3g} points" if metric.unit == "fraction" else f"{100 * loss / whole:.3g} % of it"
            unit = "points" if metric.unit == "fraction" else "%"
            figure = f"{100 * reference:.4g} %" if metric.unit == "fraction" else f"{reference:.4g}"
            return (
                f"none of {len(samples)} networks is within {100 * self._settings.accuracy_loss:g} {unit} of the "
                f"validation {metric.title} of the reference network, {figure}. The smallest loss is {lost}, at keep "
                f"ratio {-keep:.4g}. Increase accuracyLoss or samples, or retrain for more epochs."
            )
        if diverged := [sample.error for sample in samples if sample.status == "diverged"]:
            raise TrainingDiverged(f"all feasible samples of the search diverged. The last: {diverged[-1]}")
        return f"none of {len(samples)} keep ratios is feasible. The last: {samples[-1].error} Or increase samples."
