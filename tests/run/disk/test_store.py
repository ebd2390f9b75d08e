"""The store lists and reads no more than it must, and sees what other machines have stored."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiment.config import load
from experiment.files import see_changes
from experiment.run.cell.outcome import write_result
from experiment.run.disk import store as store_module
from experiment.run.disk.store import Store
from experiment.run.grid.cells import Cell
from experiment.run.grid.plan import Machine, plan_experiment


@pytest.fixture
def cells(write: Any, small: dict[str, Any]) -> tuple[Cell, ...]:
    small["experiments"]["spacing"] = [{"type": "linear", "numIntervals": 9, "maxVal": 0.9, "minVal": 0.1}]
    return plan_experiment(load(write(small)), Machine("cpu")).cells


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were listed for all their cells."""
    listed, real = list[Path](), Store.cell_folders
    monkeypatch.setattr(Store, "cell_folders", lambda store: listed.append(store.folder) or real(store))
    monkeypatch.setattr(store_module, "SECONDS_BETWEEN_LISTINGS", 1e9)
    return listed


def put(store: Store, cell: Cell, top1: float = 0.5) -> None:
    with store.writing(cell) as folder:
        write_result(folder, {"status": "done", "parameters": 1, "flops": 1, "top1": top1})


def test_cells_are_looked_up_and_stored_without_a_listing_for_each(
    cells: tuple[Cell, ...], listings: list[Path], tmp_path: Path
) -> None:
    store = Store(tmp_path / "results")
    for cell in cells:
        assert store.result(cell) is None
        assert store.tested_otherwise(cell) is None
        put(store, cell)
        assert store.result(cell) is not None
    assert len(store.results_of_chain(cells)) == len(cells) == 19
    assert len(listings) == 1


def test_a_cell_under_another_label_is_found_and_replaced(cells: tuple[Cell, ...], tmp_path: Path) -> None:
    put(Store(tmp_path), replace(cells[1], label="before"))
    store = Store(tmp_path)
    assert store.find(cells[1]) == store.cells_folder / replace(cells[1], label="before").folder
    put(store, cells[1], 0.7)
    assert len(store.cell_folders()) == 1
    assert Store(tmp_path).results(cells)[cells[1].key]["top1"] == 0.7


def test_only_changed_results_are_read_again(
    cells: tuple[Cell, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = Store(tmp_path), list[Path]()
    put(store, cells[0])
    put(store, cells[1])
    monkeypatch.setattr(Store, "read", lambda *of, real=Store.read, **how: read.append(of[1]) or real(*of, **how))
    before = store.results(cells)
    assert store.results(cells) == before
    assert len(read) == 2
    put(store, cells[1], 0.7)
    assert store.results(cells)[cells[1].key]["top1"] == 0.7
    assert len(read) == 3


def test_a_result_is_looked_for_where_the_server_is_asked(
    cells: tuple[Cell, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the cells is opened before: then NFS clients show what others have stored."""
    store, calls = Store(tmp_path), list[tuple[str, str]]()
    put(store, cells[0])
    for name in ("open", "stat"):
        real = getattr(os, name)
        noted = lambda path, *of, name=name, real=real, **how: calls.append((name, str(path))) or real(path, *of, **how)  # noqa: E731
        monkeypatch.setattr(os, name, noted)
    assert store.result(cells[0]) is not None
    assert calls[:2] == [("open", str(tmp_path)), ("open", str(store.cells_folder))]


def test_a_folder_that_does_not_exist_has_no_changes(tmp_path: Path) -> None:
    see_changes(tmp_path / "missing")
