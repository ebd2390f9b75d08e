"""The results folder of an experiment: one folder per cell, written under a temporary name and renamed.

Does not import torch.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from experiment.errors import Damaged, StoreError, described, log, shortened
from experiment.files import (
    locked,
    make_folder,
    make_lock_file,
    read_json,
    remove_all,
    see_changes,
    set_aside,
    writing_to,
)
from experiment.run.disk.cell_result import CellResult
from experiment.run.disk.damaged_files import RESULT, damaged_file
from experiment.run.grid.cells import Cell
from experiment.run.grid.keys import FORMAT_VERSION, MADE

TRACEBACK = "traceback.txt"  # in the folder of a failed cell
SECONDS_BETWEEN_LISTINGS, LISTINGS_ASIDE = 2.0, 100  # at least, and at least so many times the duration of the last one


@dataclass(frozen=True)
class Directories:
    """The folders of results, trained networks and datasets."""

    results: Path
    trained_networks: Path
    datasets: Path


@dataclass
class _Listing:
    """The folders of cells by network and key, and when they are to be listed again."""

    by_network: dict[str, dict[str, Path]] = field(default_factory=dict)
    due: float = 0.0


@dataclass(frozen=True)
class Store:
    """The results folder of one experiment."""

    folder: Path

    @cached_property
    def cells_folder(self) -> Path:
        return self.folder / "cells"

    def cell_folders(self) -> dict[str, Path]:
        """Key -> folder of every cell with a result. The key alone identifies a cell: its label may change.

        Folders that were set aside as damaged are no cells.
        """
        if not self.cells_folder.is_dir():
            return {}
        with os.scandir(self.cells_folder) as entries:
            found = {e.name.rpartition("-")[2]: Path(e.path) for e in entries if not e.name.startswith(".")}
        return {key: folder for key, folder in found.items() if "." not in key}

    def find(self, cell: Cell) -> Path | None:
        """The folder of one cell: under its present label, else under another one in a recent listing."""
        folder = self.cells_folder / cell.folder
        if folder.is_dir():
            return folder
        other = self._listed_recently(cell).get(cell.key)
        return other if other is not None and other.is_dir() else None

    def tested_otherwise(self, cell: Cell) -> Path | None:
        """The folder of a finished cell that has the same network but was tested on other data."""
        for key, folder in self._listed_recently(cell).items():
            result = self.read(folder, repair=False) if key != cell.key else None
            if result is not None and result["status"] == "done":
                return folder
        return None

    def _listed_recently(self, cell: Cell) -> dict[str, Path]:
        """Key -> folder of the cells with the network of this one, in a listing that may be a little old.

        Every cell asks, so that a listing each time would take time in the square of their number.
        """
        started = time.monotonic()
        if started >= self._listing.due:
            self._listing.by_network.clear()
            for key, folder in self.cell_folders().items():
                self._listing.by_network.setdefault(key[:MADE], {})[key] = folder
            ended = time.monotonic()
            self._listing.due = ended + max(SECONDS_BETWEEN_LISTINGS, LISTINGS_ASIDE * (ended - started))
        return self._listing.by_network.get(cell.key[:MADE], {})

    @cached_property
    def _listing(self) -> _Listing:
        return _Listing()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # without the listing: other machines have other clocks

    def read(self, folder: Path, *, repair: bool = True) -> dict[str, Any] | None:
        """The result in a cell's folder, or None. A damaged folder is logged and, with `repair`, set aside.

        Raises: StoreError: the result cannot be read, or was written by another version of this program.
        """
        path = folder / RESULT
        try:
            found = read_json(path)
            _require_version(path, found)
            result = CellResult.model_validate(found)
        except (Damaged, ValidationError):
            damaged: Path | None = path
        except FileNotFoundError:
            if not folder.is_dir() or path.exists():  # replaced or removed since the folder was listed
                return None
            damaged = path
        else:
            damaged = damaged_file(folder, result.files)
        if damaged is None:
            return dict(found)
        action = f"set aside as {set_aside(folder).name}, " if repair else ""
        log.warning("%s is damaged: %sits cell will be computed again.", damaged, action)
        return None

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The result of one cell at this moment, or None; see `results`."""
        see_changes(self.cells_folder)
        folder = self.find(cell)
        found = None if folder is None else self.read(folder)
        return found if found is None or "because" not in found else self.results([cell]).get(cell.key)

    def results_of_chain(self, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
        """As `results`, but without a listing: of cells whose failures have causes among them."""
        return self._results(cells, {c.key: folder for c in cells if (folder := self.find(c)) is not None}, True)

    def results(self, cells: Iterable[Cell], *, repair: bool = True) -> dict[str, dict[str, Any]]:
        """Key -> result of those of `cells` that have one.

        A failure that another cell caused counts only as long as that cell is failed.
        """
        return self._results(cells, self.cell_folders(), repair)

    def _results(self, cells: Iterable[Cell], folders: Mapping[str, Path], repair: bool) -> dict[str, dict[str, Any]]:
        known: dict[str, dict[str, Any] | None] = {}

        def result_of(key: str) -> dict[str, Any] | None:
            if key not in known:
                known[key] = self._read_once(folders[key], repair) if key in folders else None
            return known[key]

        found = {cell.key: result for cell in cells if (result := result_of(cell.key)) is not None}
        return {key: result for key, result in found.items() if not _is_outdated(result, result_of)}

    def _read_once(self, folder: Path, repair: bool) -> dict[str, Any] | None:
        """As `read`, but what this process has read before is read again only if the file is another one."""
        try:
            facts = os.stat(folder / RESULT)
        except OSError:
            return self.read(folder, repair=repair)
        stamp = facts.st_ino, facts.st_mtime_ns, facts.st_size
        before, result = self._known.get(folder, (None, None))
        if stamp != before and (result := self.read(folder, repair=repair)) is not None:
            self._known[folder] = stamp, result
        return result

    @cached_property
    def _known(self) -> dict[Path, tuple[tuple[int, int, int], dict[str, Any]]]:
        return {}

    def partial(self, key: str) -> Path:
        """The folder in which a cell is computed. Its checkpoint survives a kill."""
        return self.cells_folder / f".partial-{key}"

    def lock_file(self, name: str) -> Path:
        """The lock file of work that two processes must not do at the same time."""
        return make_lock_file(self.folder / ".locks" / f"{name}.lock")

    def lock(self, name: str, doing: str) -> AbstractContextManager[None]:
        """Hold a lock, waiting for it if necessary. `doing` is shown to others who wait: "writes results.csv"."""
        return locked(self.lock_file(name), doing)

    @contextmanager
    def try_lock(self, name: str | None) -> Iterator[bool]:
        """Hold a lock if it is free; yields whether it is. None means no lock, which is always free."""
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
        """Whether nobody holds a lock."""
        with self.try_lock(name) as held:
            return held

    @contextmanager
    def writing(self, cell: Cell, *, finished: bool = True) -> Iterator[Path]:
        """A temporary folder for a cell's files, which becomes the cell's folder if the block raises no error.

        The caller holds the lock of the cell, so any other such folder was left by a killed process.

        Args:
            finished: whether the checkpoint of the cell can be removed.
        """
        folder = self.cells_folder / f".writing-{cell.key}"
        old = folder.with_name(f"{folder.name}-old")
        remove_all((folder, old))
        make_folder(folder)
        try:
            with writing_to(self.cells_folder / cell.folder):
                yield folder
                sync_folder(folder)
                place = self.find(cell) or self.cells_folder / cell.folder
                if place.exists():
                    os.replace(place, old)
                os.replace(folder, place)
            if finished:
                shutil.rmtree(self.partial(cell.key), ignore_errors=True)
        finally:
            remove_all((folder, old))


def _require_version(path: Path, found: object) -> None:
    """Raises: StoreError: another version of this program wrote the result. Damaged: it has no version."""
    if not isinstance(found, dict) or "format" not in found:
        raise Damaged(f"{path}: is damaged: it has no format version.")
    version = found["format"]
    if version != FORMAT_VERSION:
        shown = shortened(version) if isinstance(version, str) else described(version)
        raise StoreError(
            f"{path}: format version {shown}, this program reads {FORMAT_VERSION}. "
            "Use the version of the program that wrote it, or another --results folder."
        )


def _is_outdated(result: Mapping[str, Any], result_of: Callable[[str], Mapping[str, Any] | None]) -> bool:
    """Whether a result is a failure because of another cell that has not failed, or is no longer there."""
    seen: set[str] = set()
    while (cause := result.get("because")) is not None:
        before = result_of(cause) if isinstance(cause, str) and cause not in seen else None
        if before is None or before["status"] != "failed":
            return True
        seen.add(cause)
        result = before
    return False


def sync_folder(folder: Path) -> None:
    """Flush a folder and its files to the disk."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
