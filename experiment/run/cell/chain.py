"""What one worker does: train and test a reference network, or compress, retrain, test and store a chain of cells."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from experiment.errors import CannotWrite, ExperimentError, Inherited, OtherVersion
from experiment.escaping import lines, reason
from experiment.files import write_whole
from experiment.layers.plan import Plan
from experiment.methods.base import Compressed
from experiment.methods.table import layer_rows
from experiment.run.cell.cell import Walk, architecture, cell_name
from experiment.run.cell.events import Advanced, CellDone, Note, Report, Started
from experiment.run.cell.outcome import costs_of, measure_network, require_finite, write_result, write_rows
from experiment.run.cell.rank_history import write_reference_ranks
from experiment.run.cell.reference import (
    Context,
    Reference,
    copy_history,
    obtain_reference,
)
from experiment.run.cell.start_state import Gone
from experiment.run.disk.network_file import save_weights
from experiment.run.disk.store import TRACEBACK
from experiment.run.grid.plan import Cell, Chain, ReferenceTask, chain_key
from experiment.run.machine import instructions

NOBODYS = (CannotWrite, OtherVersion)  # errors that no cell is to blame for: the run ends


def run_reference(task: ReferenceTask, context: Context, report: Report) -> None:
    """Train (or find) one reference network, test it and store its row; a failure is stored as such."""
    if not is_open(context.store.result(task.cell), context.retry_failed):
        return
    report(Started(cell_name(task.cell), task.cell.epochs_train + 1, task.cell.key))
    try:
        p = task.variant.parameters
        reference = obtain_reference(task.reference, p, context, report)
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
            result["hardware"] = instructions(context.machine.device)
            write_result(folder, result)
    except NOBODYS:
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
    if _ancestor_missing(chain, results, context, report):
        return False
    found, key = results[chain.reference_cell.key], chain.reference_cell.key
    if found["status"] != "done":
        broken = Inherited(f"the reference network failed: {found.get('error')}", key)
        return not store_abandoned(chain, broken, context, report)
    try:
        reference = obtain_reference(chain.reference, chain.variant.parameters, context, report)
    except NOBODYS:
        raise
    except Exception as error:
        broken = Inherited(f"the reference network cannot be used: {_reason(error)}", key)
        broken.__cause__ = error
        return not store_abandoned(chain, broken, context, report)
    try:
        walk = Walk(chain, reference, context)
    except Exception as error:
        return not store_abandoned(chain, error, context, report)
    try:
        return _walked(walk, todo, results, context, report)
    except Gone as lost:
        report(Note(str(lost)))
        return False


def _ancestor_missing(chain: Chain, results: Mapping[str, dict[str, Any]], context: Context, report: Report) -> bool:
    """Whether a result on which the chain builds has been removed; it is computed again, if nobody else is at it."""
    key, tickets = chain.reference_cell.key, chain.tickets
    if key not in results:
        with context.store.try_lock(key) as held:
            if held:
                run_reference(ReferenceTask(chain.variant, chain.reference, chain.reference_cell), context, report)
        return True
    if tickets is not None and any(cell.key not in results for cell in tickets.cells):
        with context.store.try_lock(chain_key(tickets)) as held:
            if held:
                run_chain(tickets, context, report)
        return True
    return False


def _walked(
    walk: Walk, todo: Sequence[Cell], results: Mapping[str, dict[str, Any]], context: Context, report: Report
) -> bool:
    chain = walk.chain
    tickets = chain.tickets.cells if chain.tickets is not None else ()
    left = 0
    for i, cell in enumerate(chain.cells):
        result = results.get(cell.key)
        if cell in todo:
            with context.store.try_lock(None if chain.in_order else cell.key) as held:
                result = _compute(cell, walk, context, report) if held else None
            left += result is None
        if tickets:  # where the next cell starts
            cell, result = tickets[i], results[tickets[i].key]
        if result is not None:
            walk.passed(cell, result)
    return not left


def _compute(cell: Cell, walk: Walk, context: Context, report: Report) -> dict[str, Any]:
    """The result of a cell whose lock this process holds; somebody who held it before may have left one."""
    result = context.store.result(cell)
    if result is not None and not is_open(result, context.retry_failed):
        return result
    report(Started(cell_name(cell), cell.epochs_retrain + 1, cell.key))
    try:
        result = walk.compute(cell, report)
    except (*NOBODYS, Gone):
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
        with context.store.try_lock(None if whole else cell.key) as held:
            if not held:
                left.append(cell)
            elif is_open(context.store.result(cell), context.retry_failed):
                _store_failure(cell, error, context, report)
    return left


def is_open(result: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    """Whether a cell is still to be computed."""
    return result is None or (retry_failed and result["status"] == "failed")


def _done(cell: Cell, result: Mapping[str, Any], reference: Reference) -> CellDone:
    kept = result.get("parameters")
    share = None if kept is None else kept / reference.count.parameters
    return CellDone(cell.key, cell_name(cell), result["status"], result.get("top1"), share, result.get("error"))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"


def _store_failure(cell: Cell, error: Exception, context: Context, report: Report) -> dict[str, Any]:
    why = reason(_reason(error))
    result = {"status": "failed", "error": why}
    if isinstance(error, Inherited):
        result["because"] = error.cause
    unexpected = error.__cause__ if isinstance(error, Inherited) else error
    with context.store.writing(cell, finished=False) as folder:
        if unexpected is not None and not isinstance(unexpected, ExperimentError):
            write_whole(folder / TRACEBACK, lines("".join(traceback.format_exception(unexpected))))
        write_result(folder, result)
    report(Advanced(cell.epochs_retrain + 1))
    report(CellDone(cell.key, cell_name(cell), "failed", None, None, why))
    return result
