"""The work of one worker: train and test a reference network, or compute a chain of cells."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from experiment.config import Parameters
from experiment.errors import CannotWrite, ExperimentError, Inherited, OtherVersion
from experiment.escaping import lines, reason
from experiment.files import write_whole
from experiment.layers.plan import Plan
from experiment.methods.base import Compressed
from experiment.methods.layer_table import layer_rows
from experiment.run.cell import outcome
from experiment.run.cell.cell import compute_cell
from experiment.run.cell.chain_compression import ChainCompression
from experiment.run.cell.context import Context
from experiment.run.cell.events import Advanced, CellDone, Note, ReportEvent, Started, cell_name
from experiment.run.cell.examples import write_examples
from experiment.run.cell.rank_history import write_reference_ranks
from experiment.run.cell.reference import Reference, copy_history, obtain_reference
from experiment.run.cell.start_state import StartLost
from experiment.run.cell.tuning import TABLE as TRIALS
from experiment.run.cell.tuning import AllDiverged
from experiment.run.disk.network_file import save_weights
from experiment.run.disk.store import TRACEBACK
from experiment.run.grid.cells import Cell, Chain, ReferenceTask, chain_key
from experiment.run.machine import instructions

ENDS_THE_RUN = (CannotWrite, OtherVersion)  # errors that are not the fault of a cell

Results = Mapping[str, dict[str, Any]]


def run_reference(task: ReferenceTask, context: Context, report: ReportEvent) -> None:
    """Train (or load) a reference network, test it and store its result. A failure is stored, too."""
    if not is_open(context.store.result(task.cell), context.retry_failed):
        return
    report(Started(cell_name(task.cell), task.cell.epochs_train + 1, task.cell.key))
    try:
        reference = obtain_reference(task.reference, task.variant.parameters, context, report)
        result = _store_reference(task, reference, context)
    except ENDS_THE_RUN:
        raise
    except Exception as error:  # no error of one network may stop the others
        _store_failure(task.cell, error, context, report)
    else:
        report(Advanced(1))
        report(_done(task.cell, result, reference, task.variant.parameters))


def _store_reference(task: ReferenceTask, reference: Reference, context: Context) -> dict[str, Any]:
    p, network = task.variant.parameters, reference.original
    samples = outcome.sample_figures(p)
    measured = outcome.measure_network(network, p, context.data, samples=samples)
    outcome.require_finite(measured)
    unchanged = Compressed(network, Plan(), reference.count)
    with context.store.writing(task.cell) as folder:
        size = save_weights(folder / "network.pt", network, Plan(), reference.architecture, method="Reference")
        outcome.write_rows(folder / "layers.csv", layer_rows(reference.count, unchanged))
        copy_history(reference.folder, folder, outcome.task_of(p))
        outcome.write_samples(folder, samples)
        write_examples(folder, network, p, context.data)
        write_reference_ranks(p, reference.folder, network, folder)
        result = {**outcome.costs_of(unchanged, size), "epochs": 0, "status": "done"}
        result |= outcome.test_figures(p, measured, measured) | {"hardware": instructions(context.machine.device)}
        outcome.write_result(folder, result)
    return result


def run_chain(chain: Chain, context: Context, report: ReportEvent) -> bool:
    """Compute the open cells of a chain, in order. A failed cell is stored, and the others go on.

    Returns: whether all cells have a result; False if other processes compute some of them.
    """
    tickets = chain.tickets.cells if chain.tickets is not None else ()
    results = context.store.results_of_chain([chain.reference_cell, *tickets, *chain.cells])
    todo = [cell for cell in chain.cells if is_open(results.get(cell.key), context.retry_failed)]
    if not todo:
        return True
    if not chain.in_order and not any(context.store.is_free(cell.key) for cell in todo):
        return False  # before the reference network is loaded: the caller tries again every second
    if _recompute_removed(chain, results, context, report):
        return False
    try:
        reference = _reference_of(chain, results, context, report)
        compression = ChainCompression(chain, reference, context)
    except ENDS_THE_RUN:
        raise
    except Exception as error:
        return not store_failures(chain.cells, error, context, report, locked=chain.in_order)
    try:
        return _compute_cells(compression, todo, results, context, report)
    except StartLost as lost:
        report(Note(str(lost)))
        return False


def _reference_of(chain: Chain, results: Results, context: Context, report: ReportEvent) -> Reference:
    """Raises: Inherited: the reference network failed, or cannot be loaded."""
    found, key = results[chain.reference_cell.key], chain.reference_cell.key
    if found["status"] != "done":
        raise Inherited(f"the reference network failed: {found.get('error')}", key)
    try:
        return obtain_reference(chain.reference, chain.variant.parameters, context, report)
    except ENDS_THE_RUN:
        raise
    except Exception as error:
        raise Inherited(f"the reference network cannot be used: {_text(error)}", key) from error


def _recompute_removed(chain: Chain, results: Results, context: Context, report: ReportEvent) -> bool:
    """Whether a result that the chain needs was removed. It is computed again, unless another process does so."""
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


def _compute_cells(
    compression: ChainCompression, todo: Sequence[Cell], results: Results, context: Context, report: ReportEvent
) -> bool:
    """Compute cells in order; returns whether none was left to another process."""
    chain = compression.chain
    tickets = chain.tickets.cells if chain.tickets is not None else ()
    left = 0
    for i, cell in enumerate(chain.cells):
        result = results.get(cell.key)
        if cell in todo:
            with context.store.try_lock(None if chain.in_order else cell.key) as held:
                result = _compute(cell, compression, context, report) if held else None
            left += result is None
        if tickets:  # the next cell starts from the ticket of this one
            cell, result = tickets[i], results[tickets[i].key]
        if result is not None:
            compression.cell_ended(cell, result)
    return not left


def _compute(cell: Cell, compression: ChainCompression, context: Context, report: ReportEvent) -> dict[str, Any]:
    """The result of a cell, whose lock this process holds."""
    result = context.store.result(cell)  # the previous holder of the lock may have computed it
    if result is not None and not is_open(result, context.retry_failed):
        return result
    report(Started(cell_name(cell), cell.epochs_retrain + 1, cell.key))
    try:
        result = compute_cell(cell, compression, report)
    except (*ENDS_THE_RUN, StartLost):
        raise
    except Exception as error:
        return _store_failure(cell, error, context, report)
    report(Advanced(1))
    report(_done(cell, result, compression.reference, compression.parameters))
    return result


def store_failures(
    cells: Sequence[Cell], error: Exception, context: Context, report: ReportEvent, *, locked: bool
) -> list[Cell]:
    """Store open cells as failed; returns the cells that other processes compute.

    Args:
        locked: whether the caller holds the lock of all cells.
    """
    left = []
    for cell in cells:
        with context.store.try_lock(None if locked else cell.key) as held:
            if not held:
                left.append(cell)
            elif is_open(context.store.result(cell), context.retry_failed):
                _store_failure(cell, error, context, report)
    return left


def is_open(result: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    """Whether a cell is still to be computed."""
    return result is None or (retry_failed and result["status"] == "failed")


def _done(cell: Cell, result: Mapping[str, Any], reference: Reference, p: Parameters) -> CellDone:
    parameters = result.get("parameters")
    keep = None if parameters is None else parameters / reference.count.parameters
    metric = outcome.task_of(p).primary
    figure = metric.shown(result[metric.name]) if metric.name in result else None
    return CellDone(cell.key, cell_name(cell), result["status"], figure, keep, result.get("error"))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"


def _store_failure(cell: Cell, error: Exception, context: Context, report: ReportEvent) -> dict[str, Any]:
    text = reason(_text(error))
    result = {"status": "failed", "error": text}
    if isinstance(error, Inherited):
        result["because"] = error.cause
    unexpected = error.__cause__ if isinstance(error, Inherited) else error
    with context.store.writing(cell, finished=False) as folder:
        if unexpected is not None and not isinstance(unexpected, ExperimentError):
            write_whole(folder / TRACEBACK, lines("".join(traceback.format_exception(unexpected))))
        if isinstance(error, AllDiverged):
            outcome.write_rows(folder / TRIALS, error.trials)
        outcome.write_result(folder, result)
    report(Advanced(cell.epochs_retrain + 1))
    report(CellDone(cell.key, cell_name(cell), "failed", None, None, text))
    return result
