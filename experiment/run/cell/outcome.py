"""The outcome of a cell: its compressed network, test figures and costs, and the files in which they are stored."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from experiment.config import Parameters
from experiment.errors import ExperimentError, StoreError
from experiment.escaping import csv_table, json_text
from experiment.files import write_whole
from experiment.lc.state import LCRecord
from experiment.measure import count_bytes
from experiment.methods.base import Compressed
from experiment.run.cell.data import Data
from experiment.run.disk.damaged_files import RESULT, manifest_of
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.training.evaluation import evaluate
from experiment.training.loop import EpochRecord

if TYPE_CHECKING:
    from experiment.run.cell.rank_history import RankLog


@dataclass(frozen=True)
class CellNetwork:
    """The network of a cell before it is tested.

    Attributes:
        compressed: the network after all training, its plan and its size.
        direct: the network before retraining; the same object if there was none.
        records: one row per epoch, or per step in mode lc.
        ranks: effective ranks during training, if requested.
        facts: what result.json says about how it was made: epochs, seconds, a notice.
    """

    compressed: Compressed
    direct: nn.Module
    records: list[EpochRecord] | list[LCRecord]
    ranks: RankLog | None
    facts: dict[str, Any]


def measure_network(network: nn.Module, p: Parameters, data: Data) -> dict[str, float]:
    """Loss, top-1 and top-5 on the test data, in float32 regardless of the precision of training."""
    metrics = evaluate(
        network, data.test(p), loss=p.training.loss, loss_kwargs=dict(p.training.loss_kwargs),
        device=data.device, precision="fp32", batch_size=p.training.test_batch_size,
    )  # fmt: skip
    return {"loss": metrics.loss, "top1": metrics.top1, "top5": metrics.top5}


def valid_top1(network: nn.Module, p: Parameters, data: Data) -> float:
    """Top-1 on the validation data, for selection."""
    return evaluate(
        network, data.splits(p, p.training).valid, loss=p.training.loss, loss_kwargs=dict(p.training.loss_kwargs),
        device=data.device, precision="fp32", batch_size=p.training.test_batch_size,
    ).top1  # fmt: skip


def require_finite(measured: Mapping[str, float]) -> None:
    """Raises: ExperimentError: the outputs of the network are not finite."""
    if not math.isfinite(measured["loss"]):
        raise ExperimentError(f"the test loss of the network is {measured['loss']}: its outputs are not finite.")


def costs_of(compressed: Compressed, file_size: int) -> dict[str, int]:
    """Parameters, FLOPs and bytes of a network, by column."""
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
    """Write result.json, which contains the manifest of all other files: it is written last."""
    content = {"format": FORMAT_VERSION, "files": manifest_of(folder), **result}
    write_whole(folder / RESULT, json_text(content, indent=1, sort_keys=True) + "\n")


def write_history(path: Path, records: Sequence[EpochRecord] | Sequence[LCRecord]) -> None:
    """Write history.csv: one row per epoch, or per step in mode lc."""
    columns = fields(records[0] if records else EpochRecord)
    write_rows(path, [asdict(record) for record in records], [f.name for f in columns])


def read_history(path: Path) -> list[EpochRecord]:
    """The epochs in history.csv.

    Raises: StoreError: it is missing or damaged.
    """
    integers = {"epoch", "images"}
    records = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                values = {k: None if v == "" else int(v) if k in integers else float(v) for k, v in row.items()}
                records.append(EpochRecord(**values))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise StoreError(f"{path}: is not a training history.") from error
    return records


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a CSV file of rows with the same keys; `columns` is needed if there may be no rows."""
    write_whole(path, csv_table(columns or list(rows[0]), rows))
