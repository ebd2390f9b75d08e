"""Tuned retraining of a cell: every trial from the same compressed network, and the best one on the validation part.

Each trial is retrained in its own folder inside that of the cell, and recorded at once. Of the checkpoints only that of
the best trial so far is kept, from which its network is made again.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from experiment.config.schema.training import Retraining
from experiment.config.tuning import Trial
from experiment.config.variants import compact
from experiment.errors import TrainingDiverged
from experiment.files import remove_all
from experiment.run.cell.events import CountedReport, EpochDone, ReportEvent
from experiment.run.cell.outcome import CellNetwork
from experiment.run.cell.records import read_records, write_records
from experiment.run.grid.cells import Cell
from experiment.tasks.task import Metric
from experiment.training.evaluation import Metrics

RECORDS, TABLE = "trials.json", "trials.csv"
MakeCellNetwork = Callable[[Cell, Retraining, Path, ReportEvent], CellNetwork]
"""Makes the network of an ordinary cell in a folder, retrained as a block says."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial gave.

    Attributes:
        valid, valid_loss: figures of its network on the validation part; None if there are none.
        seconds: of the whole trial, validation included.
        error: why there is no network.
    """

    valid: float | None
    valid_loss: float | None
    seconds_compress: float
    seconds_retrain: float
    seconds: float
    error: str = ""


_RESULTS = TypeAdapter(list[TrialResult])


class AllDiverged(TrainingDiverged):
    """All trials of a cell diverged; `trials` holds the rows of trials.csv."""

    def __init__(self, trials: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(f"all {len(trials)} trials diverged. The last: {trials[-1]['error']}")
        self.trials = trials


@dataclass(frozen=True)
class Tuning:
    """How the trials of a cell are made and compared.

    Attributes:
        cell: the tuned cell, with the epochs of all trials.
        folder: for the record of trials, and the folder of each.
        measure: the figures of a network on the validation part, never on the test set.
        metric: the figure to compare.
    """

    cell: Cell
    trials: Sequence[Trial]
    folder: Path
    make: MakeCellNetwork
    measure: Callable[[nn.Module], Metrics]
    metric: Metric

    def run(self, report: ReportEvent) -> CellNetwork:
        """Run the trials that are not recorded; returns the network of the best, of equals of the first.

        A network that is not retrained, since compression removes nothing, is returned without trials.

        Raises: AllDiverged: there is no network. Others as `make`.
        """
        results, counted = read_records(self.folder / RECORDS, _RESULTS), CountedReport(report)
        for i in range(len(self.trials)):
            if i >= len(results):
                result, made = self._tried(i, counted)
                if made is not None and not made.records:
                    return made
                results.append(result)
                write_records(self.folder / RECORDS, results)
            best = self._best(results[: i + 1])
            remove_all(self._folder(other) for other in range(i + 1) if other != best)
            counted.fill_up_to((i + 1) * self.cell.epochs_retrain / len(self.trials))
        if best is None:
            raise AllDiverged(self._table(results, best))
        made = self._made(best, lambda event: None)  # was reported when it was first made
        facts = made.facts | self._costs(results, best) | {"tuned": self.trials[best].name}
        return replace(made, facts=facts, trials=self._table(results, best))

    def _folder(self, trial: int) -> Path:
        return self.folder / f"trial-{trial + 1}"

    def _made(self, trial: int, report: ReportEvent) -> CellNetwork:
        ordinary = replace(self.cell, epochs_retrain=self.cell.epochs_retrain // len(self.trials))
        return self.make(ordinary, self.trials[trial].block, self._folder(trial), report)

    def _tried(self, trial: int, report: ReportEvent) -> tuple[TrialResult, CellNetwork | None]:
        started = time.perf_counter()
        try:
            made = self._made(trial, _naming(self.trials[trial], report))
        except TrainingDiverged as error:
            seconds = round(time.perf_counter() - started, 3)
            return TrialResult(None, None, 0.0, 0.0, seconds, str(error)), None
        found = self.measure(made.compressed.network)
        valid = found.values[self.metric.name]
        result = TrialResult(
            _finite(valid), _finite(found.loss), made.facts["seconds_compress"], made.facts["seconds_retrain"],
            round(time.perf_counter() - started, 3), "" if math.isfinite(valid) else f"its validation gives {valid}",
        )  # fmt: skip
        return result, made

    def _best(self, results: Sequence[TrialResult]) -> int | None:
        sign = 1 if self.metric.better == "lower" else -1
        figures = [(sign * result.valid, i) for i, result in enumerate(results) if result.valid is not None]
        return min(figures)[1] if figures else None

    def _costs(self, results: Sequence[TrialResult], best: int) -> dict[str, float]:
        compress = max(result.seconds_compress for result in results)  # all trials share it
        retrain = results[best].seconds_retrain
        rest = max(0.0, sum(result.seconds for result in results) - compress - retrain)
        return {"seconds_compress": compress, "seconds_retrain": retrain, "seconds_tune": round(rest, 3)}

    def _table(self, results: Sequence[TrialResult], best: int | None) -> list[dict[str, Any]]:
        """The rows of trials.csv."""
        return [
            {
                **{key: compact(value) for key, value in trial.values.items()},
                f"valid_{self.metric.name}": result.valid,
                "valid_loss": result.valid_loss,
                "seconds": result.seconds,
                "chosen": i == best,
                "error": result.error,
            }
            for i, (trial, result) in enumerate(zip(self.trials, results, strict=True))
        ]


def _naming(trial: Trial, report: ReportEvent) -> ReportEvent:
    """A report in which epochs have the values of their trial in their name."""
    return lambda event: report(
        replace(event, name=f"{event.name} {trial.name}") if isinstance(event, EpochDone) else event
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
