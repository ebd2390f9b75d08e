"""The outcome of a cell: its compressed network, test figures and costs, and the files in which they are stored."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from torch import nn

from experiment.config import Parameters
from experiment.datasets.image_data import Images
from experiment.errors import ExperimentError, StoreError, described
from experiment.escaping import csv_table, json_text
from experiment.files import whole_file, write_whole
from experiment.lc.state import LCRecord
from experiment.measure import count_bytes
from experiment.methods.base import Compressed
from experiment.run.cell.data import Data
from experiment.run.cell.events import EpochDone
from experiment.run.disk.cell_result import CellResult
from experiment.run.disk.damaged_files import RESULT, SAMPLES, manifest_of
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.task_name import metric_facts, task_name
from experiment.tasks import find_task
from experiment.tasks.task import Task
from experiment.training.agreement import Agreement
from experiment.training.evaluation import Metrics, Observer, evaluate
from experiment.training.loop import EpochRecord
from experiment.training.sample_figures import SampleFigures

if TYPE_CHECKING:
    from experiment.run.cell.rank_history import RankLog

GROUPS = {"values": "", "valid": "valid_"}  # fields with several metrics -> the prefix of their columns


@dataclass(frozen=True)
class CellNetwork:
    """The network of a cell before it is tested.

    Attributes:
        compressed: the network after all training, its plan and its size.
        direct: the network before retraining; the same object if there was none.
        records: one row per epoch, or per step in mode lc.
        ranks: effective ranks during training, if requested.
        facts: what result.json says about how it was made: epochs, seconds, a notice.
        trials: the rows of trials.csv, if retraining was tuned.
    """

    compressed: Compressed
    direct: nn.Module
    records: list[EpochRecord] | list[LCRecord]
    ranks: RankLog | None
    facts: dict[str, Any]
    trials: Sequence[Mapping[str, Any]] = ()


def measure_network(
    network: nn.Module, p: Parameters, data: Data, agreements: Sequence[Agreement] = (),
    samples: SampleFigures | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """The loss and all metrics on every test set, in float32 regardless of the precision of training.

    Args:
        agreements: for every test set, what compares the outputs with those of the reference network.
        samples: collects the primary metric of every sample of the first test set.
    """
    figures = []
    for i, images in enumerate(data.tests(p)):
        found = agreements[i : i + 1]
        alone = [] if samples is None or i else [samples]
        columns = evaluate_with(network, images, p, data, *found, *alone).columns
        figures.append(columns | (found[0].figures() if found else {}))
    return figures


def valid_figure(network: nn.Module, p: Parameters, data: Data) -> float:
    """The primary metric on the validation data, for selection."""
    return valid_metrics(network, p, data).values[task_of(p).primary.name]


def valid_metrics(network: nn.Module, p: Parameters, data: Data) -> Metrics:
    """The loss and all metrics on the validation data, in float32 regardless of the precision of training."""
    return evaluate_with(network, data.splits(p, p.training).valid, p, data)


def evaluate_with(network: nn.Module, images: Images, p: Parameters, data: Data, *observers: Observer) -> Metrics:
    """The loss and all metrics on these images, with the settings of a file."""
    return evaluate(
        network, images, task=task_of(p), loss=p.training.loss, loss_kwargs=p.training.loss_kwargs,
        device=data.device, precision="fp32", batch_size=p.training.test_batch_size, observers=observers,
    )  # fmt: skip


def task_of(p: Parameters) -> Task:
    """The task of an experiment."""
    return find_task(task_name(p))


def sample_figures(p: Parameters) -> SampleFigures:
    """What collects the primary metric of every sample."""
    return SampleFigures(task_of(p).primary)


def epoch_done(name: str, epoch: int, num_epochs: int, record: EpochRecord | LCRecord, p: Parameters) -> EpochDone:
    """The event that an epoch of `name`, or a step of mode lc, has ended."""
    task, loss = task_of(p), math.nan if record.loss is None else record.loss
    valid = task.primary.shown(record.valid[task.primary.name]) if record.valid else None
    return EpochDone(name, epoch, num_epochs, loss, valid, history_row(record, task))


def test_figures(
    p: Parameters, measured: Sequence[Mapping[str, float]], before_retraining: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What result.json says about the tests: figures, metrics, and what is needed to compare the primary one's.

    Args:
        measured: the figures on every test set. Those on the first stand for themselves; several are listed, too.
        before_retraining: the same of the network before retraining.
    """
    primary = task_of(p).primary
    before = [{f"{primary.name}_before_retraining": figures[primary.name]} for figures in before_retraining]
    tests = [{**figures, **direct} for figures, direct in zip(measured, before, strict=True)]
    return {
        **tests[0],
        **({"tests": tests} if len(tests) > 1 else {}),
        **metric_facts(p),
    }


def require_finite(measured: Sequence[Mapping[str, float]]) -> None:
    """Raises: ExperimentError: the outputs of the network are not finite, or a metric is not defined for them."""
    for name, value in (item for figures in measured for item in figures.items()):
        if not math.isfinite(value):
            why = "its outputs are not finite" if name == "loss" else "it is not defined for these outputs and targets"
            raise ExperimentError(f"the test {name} of the network is {value}: {why}.")


def costs_of(compressed: Compressed, file_size: int) -> dict[str, Any]:
    """Parameters, FLOPs and bytes of a network, by column, and the limited quantities."""
    amounts = compressed.amounts
    size = count_bytes(compressed.network)
    return {
        "parameters": compressed.count.parameters,
        "flops": compressed.count.flops,
        "flops_unmasked": compressed.count.flops_unmasked,
        "bytes_dense": size.dense,
        "bytes_values": size.values,
        "bytes_sparse": size.sparse,
        "bytes_file": file_size,
        **({"amounts": {name: asdict(amount) for name, amount in amounts.items()}} if amounts else {}),
    }


def write_samples(folder: Path, samples: SampleFigures) -> None:
    """Write the primary metric of every test sample, if it has one: `figures` (N,), bool or float32."""
    if (figures := samples.values()) is not None:
        with whole_file(folder / SAMPLES) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, figures=figures)


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write result.json, which contains the manifest of all other files: it is written last.

    Raises: ExperimentError: a later run would not accept it, and compute the cell again.
    """
    content = {"format": FORMAT_VERSION, "files": manifest_of(folder), **result}
    text = json_text(content, indent=1, sort_keys=True)
    try:
        CellResult.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ExperimentError(
            f"the result is not valid: {where}: {fault['msg']}. Got {described(fault['input'])}."
        ) from error
    write_whole(folder / RESULT, text + "\n")


def write_history(path: Path, records: Sequence[EpochRecord] | Sequence[LCRecord], task: Task) -> None:
    """Write history.csv: one row per epoch, or per step in mode lc.

    The columns of training metrics have the name of the metric, those of validation begin with `valid_`.
    """
    nothing = EpochRecord(0, 0.0, 0.0, {}, None, {}, 0, 0.0)
    columns = list(history_row(records[0] if records else nothing, task))
    write_rows(path, [history_row(record, task) for record in records], columns)


def history_row(record: EpochRecord | LCRecord, task: Task) -> dict[str, Any]:
    """Column -> value of one epoch or step."""
    every = {"values": [] if task.primary.joined else [task.primary.name], "valid": [m.name for m in task.metrics]}
    row: dict[str, Any] = {}
    for key, value in asdict(record).items():
        names = every.get(key)
        row |= {key: value} if names is None else {GROUPS[key] + name: value.get(name) for name in names}
    return row


def read_history(path: Path) -> list[EpochRecord]:
    """The epochs in history.csv.

    Raises: StoreError: it is missing or damaged.
    """
    integers, own = {"epoch", "images"}, {f.name for f in fields(EpochRecord)}
    records = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                values = {k: None if v == "" else int(v) if k in integers else float(v) for k, v in row.items()}
                found = {k: v for k, v in values.items() if k not in own and v is not None}
                valid = {k.removeprefix("valid_"): v for k, v in found.items() if k.startswith("valid_")}
                trained = {k: v for k, v in found.items() if not k.startswith("valid_")}
                plain = {k: v for k, v in values.items() if k in own}
                records.append(EpochRecord(**plain, values=trained, valid=valid))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise StoreError(f"{path}: is not a training history.") from error
    return records


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a CSV file of rows with the same keys; `columns` is needed if there may be no rows."""
    write_whole(path, csv_table(columns or list(rows[0]), rows))
