"""The computation of a cell: make or search its network, test it before and after retraining, store it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from experiment.errors import InfeasibleBudget
from experiment.methods.layer_table import layer_rows
from experiment.run.cell import outcome
from experiment.run.cell.cell_network import make_cell_network
from experiment.run.cell.chain_compression import ChainCompression
from experiment.run.cell.events import ReportEvent
from experiment.run.cell.examples import write_examples
from experiment.run.cell.search import TABLE, CellSearch, SearchResult
from experiment.run.cell.tuning import TABLE as TRIALS
from experiment.run.disk.network_file import save_weights
from experiment.run.grid.cells import Cell
from experiment.run.machine import instructions


def compute_cell(cell: Cell, compression: ChainCompression, report: ReportEvent) -> dict[str, Any]:
    """Compute and store a cell; returns its result.

    Raises: Inherited: the previous cell of the cascade failed. TrainingDiverged, CompressionError, StoreError.
    """
    if compression.previous_failure is not None:
        raise compression.previous_failure
    try:
        if cell.samples:
            return _search(cell, compression, report)
        folder = compression.context.store.partial(cell.key)
        return _test_and_store(cell, make_cell_network(cell, compression, folder, report), compression)
    except InfeasibleBudget as error:
        why = {"error": str(error), "smallest": error.smallest}
        return _store_infeasible(cell, why | compression.limits(cell), compression)


def _search(cell: Cell, compression: ChainCompression, report: ReportEvent) -> dict[str, Any]:
    p, context = compression.parameters, compression.context
    settings = p.experiments.search
    assert settings is not None

    def measure(network: nn.Module) -> float:
        return outcome.valid_figure(network, p, context.data)

    search = CellSearch(
        cell, settings, context.store.partial(cell.key), measure=measure, metric=outcome.task_of(p).primary,
        make=lambda cell, folder, report: make_cell_network(cell, compression, folder, report),
        reference=measure(compression.reference.network),
    )  # fmt: skip
    found = search.run(report)
    if found.keep is None:
        return _store_infeasible(cell, {**found.facts, "error": found.reason}, compression, found)
    made = search.make_sample(found.keep, lambda event: None)  # was reported when it was first made
    facts = {**made.facts, **found.facts}
    facts["seconds_retrain"] = round(facts["seconds_retrain"] - facts.get("seconds_tune", 0.0), 3)  # of all samples
    return _test_and_store(cell, replace(made, facts=facts), compression, found)


def _test_and_store(
    cell: Cell, made: outcome.CellNetwork, compression: ChainCompression, search: SearchResult | None = None
) -> dict[str, Any]:
    p, context, reference = compression.parameters, compression.context, compression.reference
    network = made.compressed.network
    samples = outcome.sample_figures(p)
    measured = outcome.measure_network(network, p, context.data, compression.agreements(), samples)
    outcome.require_finite(measured)
    direct = measured if made.direct is network else outcome.measure_network(made.direct, p, context.data)
    with context.store.writing(cell) as folder:
        size = save_weights(
            folder / "network.pt", network, made.compressed.plan, reference.architecture,
            method=cell.method, label=cell.label, keep=made.facts.get("keep_found", cell.keep),
        )  # fmt: skip
        outcome.write_rows(folder / "layers.csv", layer_rows(reference.count, made.compressed))
        outcome.write_history(folder / "history.csv", made.records, outcome.task_of(p))
        outcome.write_samples(folder, samples)
        write_examples(folder, network, p, context.data)
        if made.ranks is not None:
            made.ranks.write(folder)
        if search is not None:
            outcome.write_rows(folder / TABLE, search.table())
        if made.trials:
            outcome.write_rows(folder / TRIALS, made.trials)
        result = {**outcome.costs_of(made.compressed, size), **made.facts, "status": "done"}
        result |= outcome.test_figures(p, measured, direct) | {"hardware": instructions(context.machine.device)}
        outcome.write_result(folder, result)
    return result


def _store_infeasible(
    cell: Cell, why: Mapping[str, Any], compression: ChainCompression, search: SearchResult | None = None
) -> dict[str, Any]:
    result = {"status": "infeasible", "epochs": 0, **why}
    with compression.context.store.writing(cell) as folder:
        if search is not None:
            outcome.write_rows(folder / TABLE, search.table())
        outcome.write_result(folder, result)
    return result
