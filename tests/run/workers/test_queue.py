"""How chains are handed out in parts, and who does a cell that two processes are after."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from experiment.config import load
from experiment.main import main
from experiment.run.disk.store import Store
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.run.workers.queue import Queue, Work, cells_of, open_work


def work_of(write: Any, small: dict[str, Any], **experiments: Any) -> list[Work]:
    small["experiments"] |= {"mode": "retrain"} | experiments
    return open_work(0, plan_experiment(load(write(small)), Machine("cpu")), {})


def drained(work: list[Work], workers: int) -> list[Work]:
    """All that a queue hands out, with references finished first."""
    queue, taken = Queue(work), []
    while (item := queue.take(frozenset(), workers)) is not None:
        taken.append(item)
        queue.finished(item)
    assert not queue
    assert not queue.unfinished
    return taken


def spacing(number: int) -> list[dict[str, Any]]:
    return [{"type": "linear", "numIntervals": number, "maxVal": 0.9, "minVal": 0.1}]


def test_parts_become_smaller_and_hold_every_cell_once(write: Any, small: dict[str, Any]) -> None:
    work = work_of(write, small, spacing=spacing(12), numNets=1)
    taken = [item for item in drained(work, 3) if item.needs is not None]
    chains = [item for item in work if item.needs is not None]
    assert [c.key for item in taken for c in item.cells] == [c.key for item in chains for c in item.cells]
    assert all(item.cells == item.task.cells for item in taken)
    units, left = [item.units for item in taken], sum(item.units for item in taken)
    for i, size in enumerate(units):  # no more than one cell over the share
        assert size <= left / (2 * 3) + max(c.epochs_retrain + 1 for c in taken[i].cells)
        left -= size
    assert len(taken[-1].cells) == 1
    assert len({item.name for item in taken}) == len(taken)


def test_one_worker_gets_whole_chains(write: Any, small: dict[str, Any]) -> None:
    work = work_of(write, small, spacing=spacing(12))
    assert drained(work, 1) == work


def test_cascades_stay_whole(write: Any, small: dict[str, Any]) -> None:
    work = work_of(write, small, spacing=spacing(12), mode="cascade")
    assert drained(work, 8) == work
    assert all(item.lock is not None and item.pieces == 1 for item in work)


@pytest.mark.usefixtures("no_plots")
def test_a_cell_that_another_process_computes_is_left_to_it(
    write: Any, small: dict[str, Any], in_tmp: Path, forked: Any
) -> None:
    """The others are computed meanwhile; the command ends when that one is there too."""
    small["experiments"] |= {"methods": ["WT"], "numNets": 1}
    path = write(small)
    cell = plan_experiment(load(path), Machine("cpu")).chains[0].cells[0]
    folder = in_tmp / "data/results/small"
    (folder / ".locks").mkdir(parents=True)
    others = len(plan_experiment(load(path), Machine("cpu")).cells) - 1
    with FileLock(folder / ".locks" / f"{cell.key}.lock"):
        process = forked(lambda: main([str(path), "-j", "1"]))
        process.until(lambda: process.said.count(": top-1 ") == others)
        assert not [p for p in (folder / "cells").iterdir() if p.name.endswith(cell.key)]
        assert not Store(folder).is_free(cell.key)
    assert Store(folder).is_free("another")
    assert process.wait() == 0, process.said
    assert [p for p in (folder / "cells").iterdir() if p.name.endswith(cell.key)]


@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_more_workers_than_chains(write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any) -> None:
    small["experiments"] |= {"methods": ["WT"], "numNets": 1, "spacing": spacing(4)}
    assert main([str(write(small)), "-j", "2"]) == 0
    assert "2 workers with 1 thread" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["retrain", "train"])
def test_a_share_needs_the_results_of_its_own_cells_alone(write: Any, small: dict[str, Any], mode: str) -> None:
    small["experiments"] |= {"numNets": 3, "mode": mode}
    plan = plan_experiment(load(write(small)), Machine("cpu"))
    results = {cell.key: {"status": "done"} for cell in plan.cells[::2]}
    for share in [(k, 4) for k in range(4)]:
        own = {cell.key for cell in cells_of(plan, share)}
        assert own < {cell.key for cell in plan.cells}
        known = {key: result for key, result in results.items() if key in own}
        assert open_work(0, plan, known, share=share) == open_work(0, plan, results, share=share)
    everything = {cell.key for k in range(4) for cell in cells_of(plan, (k, 4))}
    assert everything == {cell.key for cell in cells_of(plan, None)} == {cell.key for cell in plan.computed}
