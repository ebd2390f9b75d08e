"""Where results are kept: a folder a cell, written elsewhere and renamed, and results.csv from them. No torch here."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiment.errors import Damaged, StoreError, described, shortened
from experiment.escaping import csv_table, reason
from experiment.files import (
    locked,
    make_folder,
    make_lock_file,
    read_json,
    remove_all,
    set_aside,
    write_whole,
    writing_to,
)
from experiment.run.disk.extra_columns import extra_columns, extra_values
from experiment.run.disk.integrity import first_damaged, is_result
from experiment.run.grid.keys import FORMAT_VERSION, MADE
from experiment.run.grid.plan import Cell, ExperimentPlan, ReferenceSpec

COLUMNS = (
    "dataset", "dataset_test", "network", "variant", "method", "label", "net", "repetition", "keep_target",
    "parameters", "flops", "flops_unmasked", "keep_parameters", "keep_flops",
    "bytes_dense", "bytes_values", "bytes_sparse", "bytes_file",
    "loss", "top1", "top5", "top1_before_retraining", "top1_reference", "parameters_reference", "flops_reference",
    "epochs", "seconds_compress", "seconds_retrain", "status", "error", "cell", "hardware",
)  # fmt: skip

TRACEBACK = "traceback.txt"  # in the folder of a failed cell

log = logging.getLogger("experiment")


@dataclass(frozen=True)
class Directories:
    """Where results, trained networks and datasets lie."""

    results: Path
    trained_networks: Path
    datasets: Path


@dataclass(frozen=True)
class Store:
    """The folder of one experiment."""

    folder: Path

    @cached_property
    def cells_folder(self) -> Path:
        return self.folder / "cells"

    def index(self) -> dict[str, Path]:
        """Key -> folder of every cell that is there whole; a cell keeps its result under any label."""
        if not self.cells_folder.is_dir():
            return {}
        with os.scandir(self.cells_folder) as entries:
            return {e.name.rpartition("-")[2]: Path(e.path) for e in entries if not e.name.startswith(".")}

    def tested_otherwise(self, cell: Cell) -> Path | None:
        """The folder of a finished cell with the same network as this one's, which was tested on other data."""
        for key, folder in self.index().items():
            if key[:MADE] == cell.key[:MADE] and key != cell.key:
                result = self.read(folder, mend=False)
                if result is not None and result["status"] == "done":
                    return folder
        return None

    def read(self, folder: Path, *, mend: bool = True) -> dict[str, Any] | None:
        """The result of one cell, or None; a damaged one is named in the log and, to `mend`, set aside.

        Raises: StoreError: the result cannot be read, or was written by another version of this program.
        """
        path = folder / "result.json"
        try:
            result = read_json(path)
            version = result["format"]
        except (Damaged, KeyError, TypeError):
            self._damaged(path, mend)
            return None
        except FileNotFoundError:  # replaced or removed since the folder was listed, or never whole
            if folder.is_dir() and not path.exists():
                self._damaged(path, mend)
            return None
        if version != FORMAT_VERSION:
            version = shortened(version) if isinstance(version, str) else described(version)
            raise StoreError(
                f"{path}: format version {version}, this program reads {FORMAT_VERSION}. "
                "Use the version of the program that wrote it, or another --results folder."
            )
        wrong = first_damaged(folder, result) if is_result(result) else path
        if wrong is not None:
            self._damaged(wrong, mend)
        return dict(result) if wrong is None else None

    def _damaged(self, path: Path, mend: bool) -> None:
        place = f"set aside as {set_aside(path.parent).name}, " if mend else ""
        log.warning("%s is damaged: %sits cell will be computed again.", path, place)

    def results(self, cells: Iterable[Cell], *, mend: bool = True) -> dict[str, dict[str, Any]]:
        """Key -> result of those of `cells` that are there; failures of another cell's making only while that lasts."""
        index = self.index()
        known: dict[str, dict[str, Any] | None] = {}

        def of(key: str) -> dict[str, Any] | None:
            if key not in known:
                known[key] = self.read(index[key], mend=mend) if key in index else None
            return known[key]

        found = {cell.key: result for cell in cells if (result := of(cell.key)) is not None}
        return {key: result for key, result in found.items() if _stands(result, of)}

    def partial(self, key: str) -> Path:
        """Where a cell is computed; its checkpoint lies here and survives a kill."""
        return self.cells_folder / f".partial-{key}"

    def lock_file(self, name: str) -> Path:
        """The lock of a piece of work that two processes must not do at once."""
        return make_lock_file(self.folder / ".locks" / f"{name}.lock")

    def held(self, name: str, doing: str) -> AbstractContextManager[None]:
        """This lock, held inside once everybody else has let go of it; `doing` is what it is for, in words."""
        return locked(self.lock_file(name), doing)

    @contextmanager
    def trying(self, name: str | None) -> Iterator[bool]:
        """Whether nobody else holds this lock, which is held inside; None is no lock, and always free."""
        if name is None:
            yield True
            return
        lock = FileLock(self.lock_file(name))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_free(self, name: str) -> bool:
        """Whether nobody holds this lock now."""
        with self.trying(name) as held:
            return held

    @contextmanager
    def writing(self, cell: Cell, *, finished: bool = True) -> Iterator[Path]:
        """A folder to write a cell's files to; it becomes the cell's folder when the block ends without an error.

        Whoever writes holds the lock of the cell's work, so that another such folder is that of a killed process.
        Args:
            finished: the checkpoint of the cell's training is of no more use.
        """
        folder = self.cells_folder / f".writing-{cell.key}-{uuid.uuid4().hex[:8]}"
        remove_all(self.cells_folder.glob(f".writing-{cell.key}-*"))
        make_folder(folder)
        old = folder.with_name(f"{folder.name}-old")
        try:
            with writing_to(self.cells_folder / cell.folder):
                yield folder
                sync_folder(folder)
                place = self.index().get(cell.key, self.cells_folder / cell.folder)
                if place.exists():
                    os.replace(place, old)
                os.replace(folder, place)
            if finished:
                shutil.rmtree(self.partial(cell.key), ignore_errors=True)
        finally:
            remove_all((folder, old))

    def write_table(self, plan: ExperimentPlan) -> dict[str, dict[str, Any]]:
        """Write results.csv, a row a finished cell, in grid order; returns the results that went into it."""
        with self.held("table", "writes results.csv"):  # or an older reading could overwrite a newer one
            remove_all(self.folder.glob(".results.csv.*"))  # what a killed process left
            results = self.results(plan.cells)
            self._write_table(plan, results)
        return results

    def _write_table(self, plan: ExperimentPlan, results: Mapping[str, Mapping[str, Any]]) -> None:
        extra = extra_columns(plan)
        rows = []
        folders = self.index() if extra else {}
        references = {(t.variant.name, t.cell.net): folders.get(t.cell.key) for t in plan.references}
        for row in table_rows(plan, results):
            folder = folders.get(row["cell"])
            values = {} if folder is None else extra_values(folder, references[row["variant"], row["net"]])
            rows.append(row | {column: values.get(column) for column in extra})
        write_whole(self.folder / "results.csv", csv_table((*COLUMNS, *extra), rows))


def _stands(result: Mapping[str, Any], of: Callable[[str], Mapping[str, Any] | None]) -> bool:
    """Whether a result is one: not the failure of a cell that builds on another which has not failed (any more)."""
    passed: set[str] = set()
    while (cause := result.get("because")) is not None:
        before = of(cause) if isinstance(cause, str) and cause not in passed else None
        if before is None or before["status"] != "failed":
            return False
        passed.add(cause)
        result = before
    return True


def table_rows(plan: ExperimentPlan, results: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of results.csv: what each cell measured, beside its reference network's figures."""
    references = {(t.variant.name, t.cell.net): results.get(t.cell.key, {}) for t in plan.references}
    parameters = {variant.name: variant.parameters for variant in plan.file.variants}
    for cell in plan.cells:
        result = results.get(cell.key)
        if result is None:
            continue
        reference, p = references[cell.variant, cell.net], parameters[cell.variant]
        test = p.experiments.dataset_test or p.network.dataset
        row = {column: result.get(column) for column in COLUMNS}
        row |= {
            "dataset": p.network.dataset.name, "dataset_test": test.name, "network": p.network.name,
            "variant": cell.variant, "method": cell.method, "label": cell.label, "net": cell.net,
            "repetition": cell.repetition, "keep_target": cell.keep_target, "cell": cell.key,
            "top1_reference": reference.get("top1"), "parameters_reference": reference.get("parameters"),
            "flops_reference": reference.get("flops"),
        }  # fmt: skip
        row["error"] = None if row["error"] is None else reason(str(row["error"]))
        for quantity in ("parameters", "flops"):
            count, whole = result.get(quantity), reference.get(quantity)
            row[f"keep_{quantity}"] = count / whole if count is not None and whole else None
        yield {column: "" if value is None else value for column, value in row.items()}


def reference_folder(directories: Directories, reference: ReferenceSpec) -> Path:
    """Where a trained, uncompressed network lies."""
    return directories.trained_networks / reference.folder


def sync_folder(folder: Path) -> None:
    """Bring every file of a folder, and the folder itself, to the disk, before the folder gets its name."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
