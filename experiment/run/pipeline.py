"""What one worker does: train and test a reference network, or compress, retrain, test and store a chain of cells."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from experiment.errors import CannotWrite, ExperimentError
from experiment.files import write_whole
from experiment.layers.plan import Plan
from experiment.methods.base import Compressed
from experiment.methods.table import layer_rows
from experiment.run.events import Advanced, CellDone, Report, Started
from experiment.run.outcome import costs_of, measure_network, require_finite, write_result, write_rows
from experiment.run.plan import Cell, Chain, ReferenceTask
from experiment.run.ranks import write_reference_ranks
from experiment.run.reference import (
    Context,
    Reference,
    copy_history,
    obtain_reference,
)
from experiment.run.store import TRACEBACK
from experiment.run.walk import Walk, architecture, cell_name
from experiment.run.weights import save_weights


def run_reference(task: ReferenceTask, context: Context, report: Report) -> None:
    """Train (or find) one reference network, test it and store its row; a failure is stored as such."""
    if not is_open(context.store.results([task.cell]).get(task.cell.key), context.retry_failed):
        return
    report(Started(cell_name(task.cell), task.cell.epochs_train + 1, task.cell.key))
    try:
        p = task.variant.parameters
        reference = obtain_reference(task.reference, p, context, report)
        with context.clock.part("test"):
            measured = measure_network(reference.network, p, context.data)
        require_finite(measured)
        unchanged = Compressed(reference.network, Plan(), reference.count)
        with context.store.writing(task.cell) as folder:
            size = save_weights(
                folder / "network.pt", reference.network, Plan(), architecture(p, reference), method="Reference"
            )
            write_rows(folder / "layers.csv", layer_rows(reference.count, unchanged))
            copy_history(reference.folder, folder)
            write_reference_ranks(p, reference.folder, reference.network, folder)
            costs = costs_of(unchanged, size)
            result = {**costs, **measured, "epochs": 0, "status": "done", "top1_before_retraining": measured["top1"]}
            write_result(folder, result)
    except CannotWrite:
        raise
    except Exception as error:  # whatever breaks one network must not stop the others: it is stored and told
        _store_failure(task.cell, error, context, report)
    else:
        report(Advanced(1))
        report(_done(task.cell, result, reference))


def run_chain(chain: Chain, context: Context, report: Report) -> bool:
    """Compute those cells of a chain that have no result yet, in order; a failed one is stored, the rest goes on.

    Returns: whether all of them have one now; a cell that another process is at is left to it.
    """
    tickets = chain.tickets.cells if chain.tickets is not None else ()
    results = context.store.results([chain.reference_cell, *tickets, *chain.cells])
    todo = [cell for cell in chain.cells if is_open(results.get(cell.key), context.retry_failed)]
    if not todo:
        return True
    if not chain.in_order and not any(context.store.is_free(cell.key) for cell in todo):
        return False  # before the reference network is loaded: whoever asks comes back every second
    found = results.get(chain.reference_cell.key, {"status": "failed", "error": "it has no result"})
    if found["status"] != "done":
        broken = ExperimentError(f"the reference network failed: {found.get('error')}")
        return not store_abandoned(chain, broken, context, report)
    try:
        walk = Walk(chain, obtain_reference(chain.reference, chain.variant.parameters, context, report), context)
    except CannotWrite:
        raise
    except Exception as error:
        return not store_abandoned(chain, error, context, report)
    left = 0
    for i, cell in enumerate(chain.cells):
        result = results.get(cell.key)
        if cell in todo:
            with context.store.trying(None if chain.in_order else cell.key) as held:
                result = _compute(cell, walk, context, report) if held else None
            left += result is None
        if tickets:  # where the next cell starts
            cell, result = tickets[i], results.get(tickets[i].key, {"status": "failed", "error": "it has no result"})
        if result is not None:
            walk.passed(cell, result)
    return not left


def _compute(cell: Cell, walk: Walk, context: Context, report: Report) -> dict[str, Any]:
    """The result of a cell whose lock this process holds; somebody who held it before may have left one."""
    result = context.store.results([cell]).get(cell.key)
    if result is not None and not is_open(result, context.retry_failed):
        return result
    report(Started(cell_name(cell), cell.epochs_retrain + 1, cell.key))
    try:
        result = walk.compute(cell, report)
    except CannotWrite:
        raise
    except Exception as error:
        return _store_failure(cell, error, context, report)
    report(Advanced(1))
    report(_done(cell, result, walk.reference))
    return result


def store_abandoned(task: ReferenceTask | Chain, error: Exception, context: Context, report: Report) -> list[Cell]:
    """Store what a task has left undone as failed; returns the cells that other processes are at."""
    cells = (task.cell,) if isinstance(task, ReferenceTask) else task.cells
    whole = isinstance(task, ReferenceTask) or task.in_order  # whose lock the caller holds
    left = []
    for cell in cells:
        with context.store.trying(None if whole else cell.key) as held:
            if not held:
                left.append(cell)
            elif is_open(context.store.results([cell]).get(cell.key), context.retry_failed):
                _store_failure(cell, error, context, report)
    return left


def is_open(result: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    """Whether a cell is still to be computed."""
    return result is None or (retry_failed and result["status"] == "failed")


def _done(cell: Cell, result: Mapping[str, Any], reference: Reference) -> CellDone:
    kept = result.get("parameters")
    share = None if kept is None else kept / reference.count.parameters
    return CellDone(cell.key, cell_name(cell), result["status"], result.get("top1"), share, result.get("error"))


def _store_failure(cell: Cell, error: Exception, context: Context, report: Report) -> dict[str, Any]:
    reason = str(error) if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"
    result = {"status": "failed", "error": reason}
    with context.store.writing(cell, finished=False) as folder:
        if not isinstance(error, ExperimentError):
            write_whole(folder / TRACEBACK, "".join(traceback.format_exception(error)))
        write_result(folder, result)
    report(Advanced(cell.epochs_retrain + 1))
    report(CellDone(cell.key, cell_name(cell), "failed", None, None, reason))
    return result
