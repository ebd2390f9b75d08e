"""The hook `mlflow`: one MLflow run per cell, below one run for the experiment."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from experiment.errors import ConfigError
from experiment.hooks.hook import CellFacts, Epoch, Run
from experiment.user_code import missing_module

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER, CELL, STATUS = "experiment.folder", "experiment.cell", "experiment.status"  # tags
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"  # those of MLflow
PARAMS = ("network", "dataset", "variant", "method", "label", "keep", "net", "repetition", "seed")


class MLflowRuns:
    """Logs parameters, metrics per epoch, final figures and sizes of every cell.

    A run that is continued logs into the MLflow runs that it made before.

    Args:
        tracking_uri: where to log: `sqlite:///mlflow.db`, `http://...`. Default: that of MLflow's environment.
        experiment_name: of the experiment in MLflow. Default: the name of this experiment.
    Source: https://mlflow.org
    """

    def __init__(self, tracking_uri: str | None = None, experiment_name: str | None = None) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ConfigError(missing_module("mlflow")) from error
        self._client: MlflowClient = MlflowClient(tracking_uri=tracking_uri)
        self._name = experiment_name
        self._experiment, self._parent = "", ""
        self._open: dict[str, str] = {}  # key of a cell that is being computed -> MLflow's id of its run
        self._steps: dict[str, int] = {}  # key of a cell -> the last step; the epochs of a search follow each other

    def run_start(self, run: Run) -> None:
        """Find or make the MLflow experiment, and the run of this experiment in it."""
        name = self._name or run.name
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        description = run.parameters.get("description")
        about = {NOTE: str(description)} if description else {}
        self._parent = self._run(run.name, {FOLDER: str(run.folder.resolve())}, about, {})

    def run_end(self, run: Run, counts: Mapping[str, int]) -> None:
        """End the runs that an interruption has left open, and that of the experiment."""
        for run_id in self._open.values():
            self._client.set_terminated(run_id, "KILLED")
        status = "KILLED" if counts.get("pending") else "FAILED" if counts.get("failed") else "FINISHED"
        self._client.set_terminated(self._parent, status)

    def cell_start(self, cell: CellFacts) -> None:
        """Open the run of a cell."""
        which, about = {CELL: cell.key, PARENT: self._parent}, {FOLDER: str(cell.folder.resolve())}
        params = {name: value for name, value in asdict(cell).items() if name in PARAMS and value not in (None, "")}
        self._open[cell.key] = self._run(cell.name, which, about, params)

    def epoch_end(self, cell: CellFacts, epoch: Epoch) -> None:
        """Log the row of history.csv as `epoch/loss`, `epoch/valid_top1` and so on."""
        step = self._steps[cell.key] = max(epoch.epoch, self._steps.get(cell.key, -1) + 1)
        self._log(
            self._open[cell.key],
            {f"epoch/{name}": value for name, value in epoch.figures.items() if name != "epoch"},
            step,
        )

    def cell_end(self, cell: CellFacts, result: Mapping[str, Any]) -> None:
        """Log the figures on the test set, the sizes and the status."""
        if cell.key not in self._open:
            self.cell_start(cell)
        run_id = self._open[cell.key]
        self._log(run_id, {name: value for name, value in result.items() if name != "format"}, 0)
        self._client.set_tag(run_id, STATUS, result["status"])
        if result.get("error"):
            self._client.set_tag(run_id, NOTE, str(result["error"]))
        self._client.set_terminated(run_id, "FAILED" if result["status"] == "failed" else "FINISHED")
        del self._open[cell.key]

    def _run(self, name: str, which: Mapping[str, str], about: Mapping[str, str], params: Mapping[str, object]) -> str:
        """The id of the run with the tag `which`, which is open then."""
        where = " and ".join(f'tags.`{tag}` = "{value}"' for tag, value in which.items())
        found = self._client.search_runs([self._experiment], where, max_results=1)
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        made = self._client.create_run(self._experiment, tags={**which, **about}, run_name=name)
        for key, value in params.items():
            self._client.log_param(made.info.run_id, key, value)
        return str(made.info.run_id)

    def _log(self, run_id: str, values: Mapping[str, object], step: int) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        metrics = [Metric(k, float(v), now, step) for k, v in numbers.items() if math.isfinite(v)]
        self._client.log_batch(run_id, metrics=metrics)
