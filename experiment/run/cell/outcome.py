"""What a cell leaves behind: what it measured and what it costs, as the files of its folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import nn

from experiment.config import Parameters
from experiment.errors import ExperimentError, StoreError
from experiment.escaping import csv_table, json_text
from experiment.files import write_whole
from experiment.lc.lc_checkpoint import Iteration
from experiment.measure import count_bytes
from experiment.methods.base import Compressed
from experiment.run.cell.data import Data
from experiment.run.disk.integrity import sizes_of, sums_of
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.training.loop import EpochRecord, evaluate


def measure_network(network: nn.Module, p: Parameters, data: Data) -> dict[str, float]:
    """Loss, top-1 and top-5 on the test data, in float32 whatever the precision of training."""
    metrics = evaluate(
        network, data.test(p), loss=p.training.loss, loss_kwargs=dict(p.training.loss_kwargs),
        device=data.device, precision="fp32", batch_size=p.training.test_batch_size,
    )  # fmt: skip
    return {"loss": metrics.loss, "top1": metrics.top1, "top5": metrics.top5}


def valid_top1(network: nn.Module, p: Parameters, data: Data) -> float:
    """Top-1 on the validation part, measured as on the test data: what choices are made by."""
    return evaluate(
        network, data.splits(p, p.training).valid, loss=p.training.loss, loss_kwargs=dict(p.training.loss_kwargs),
        device=data.device, precision="fp32", batch_size=p.training.test_batch_size,
    ).top1  # fmt: skip


def require_finite(measured: Mapping[str, float]) -> None:
    """Raises: ExperimentError: the network's outputs are not finite."""
    if not math.isfinite(measured["loss"]):
        raise ExperimentError(f"the network's test loss is {measured['loss']}: its outputs are not finite.")


def costs_of(compressed: Compressed, file_size: int) -> dict[str, int]:
    """Counts, and bytes under all conventions."""
    size = count_bytes(compressed.network)
    return {
        "parameters": compressed.count.parameters,
        "flops": compressed.count.flops,
        "flops_unmasked": compressed.count.flops_unmasked,
        "bytes_dense": size.dense,
        "bytes_values": size.values,
        "bytes_sparse": size.sparse,
        "bytes_file": file_size,
    }


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """result.json, with the format's version and the sizes of the files that are there: it is written last."""
    content = {"format": FORMAT_VERSION, "files": sizes_of(folder), "sums": sums_of(folder), **result}
    write_whole(folder / "result.json", json_text(content, indent=1, sort_keys=True) + "\n")


def write_history(path: Path, records: Sequence[EpochRecord] | Sequence[Iteration]) -> None:
    """history.csv: a row an epoch, or a step of mode lc; with none, nothing but the header of epochs."""
    columns = fields(records[0] if records else EpochRecord)
    write_rows(path, [asdict(record) for record in records], [f.name for f in columns])


def read_history(path: Path) -> list[EpochRecord]:
    """The epochs that `write_history` wrote.

    Raises: StoreError: it is missing or damaged.
    """
    whole = {"epoch", "images"}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        values = [{k: None if v == "" else int(v) if k in whole else float(v) for k, v in row.items()} for row in rows]
        return [EpochRecord(**value) for value in values]  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise StoreError(f"{path}: is no history of a training.") from error


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """A CSV file of rows with the same keys; `columns` for when there may be no row."""
    write_whole(path, csv_table(columns or list(rows[0]), rows))
