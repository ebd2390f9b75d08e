"""The output of --plan: what an experiment would run, what is done, and what cannot run. Without torch."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiment.config import Search
from experiment.config.modes import rewinding
from experiment.config.tuning import num_trials
from experiment.config.variants import compact
from experiment.errors import plural
from experiment.escaping import json_text
from experiment.run.grid.cells import Cell
from experiment.run.grid.keys import planned_epochs
from experiment.run.grid.plan import ExperimentPlan

Results = Mapping[str, Mapping[str, Any]]


def cell_status(plan: ExperimentPlan, cell: Cell, results: Results) -> str:
    """`done`, `failed` or `infeasible` if there is a result, `unavailable` if a name is unknown, else `pending`."""
    result = results.get(cell.key)
    if result is not None:
        return str(result["status"])
    return "unavailable" if plan.reason(cell) else "pending"


def plan_json(plan: ExperimentPlan, results: Results) -> Iterator[str]:
    """One JSON object per cell and line."""
    variants = {variant.name: variant for variant in plan.file.variants}
    for cell in plan.cells:
        variant = variants[cell.variant]
        p = variant.parameters
        yield json_text(
            {
                "file": str(plan.file.path),
                "experiment": plan.name,
                "variant": {"key": list(variant.key), "value": variant.value} if variant.key else None,
                "network": p.network.name,
                "dataset": p.network.dataset.name,
                "method": cell.method,
                "label": cell.label,
                "net": cell.net,
                "repetition": cell.repetition,
                "keep_target": cell.keep_target,
                "between": list(cell.between),
                "mode": p.experiments.mode,
                "rewind": rewinding(p.experiments),
                "epochs_train": cell.epochs_train,
                "epochs_retrain": cell.epochs_retrain,
                "status": cell_status(plan, cell, results),
                "error": results.get(cell.key, {}).get("error") or plan.reason(cell),
                "cell": cell.key,
            }
        )


def plan_text(plan: ExperimentPlan, results: Results, trained_networks: Path) -> Iterator[str]:
    """The grid in a few lines: its settings, how much is done, and why cells failed or cannot run."""
    yield from _settings(plan)
    counts = {label: Counter[str]() for label in dict.fromkeys(cell.label for cell in plan.cells)}
    for cell in plan.cells:
        counts[cell.label][cell_status(plan, cell, results)] += 1
    width = max(map(len, counts))
    for label, count in counts.items():
        yield f"  {label:{width}}  " + ", ".join(f"{n} {status}" for status, n in sorted(count.items()))
    # each key once: variants that differ in their retraining share reference networks
    pending = {c.key: c for c in plan.computed if cell_status(plan, c, results) == "pending"}
    retrain = sum(c.epochs_retrain for c in pending.values())
    train = _training_left(plan, pending, trained_networks)
    most = "at most " if any(c.samples for c in pending.values()) else ""
    total = len({c.key for c in plan.computed})
    yield f"  to do      {len(pending)} of {total} cells: {train}, {most}{retrain} of retraining"
    for cell in plan.cells:
        result = results.get(cell.key, {})
        if result.get("status") in ("failed", "infeasible"):
            yield f"  {result['status']}: {cell.label} net {cell.net} {cell.size}: {result.get('error')}"
    for problem in plan.problems:
        yield f"  unavailable: {problem}"
    if plan.problems:
        yield "  a run computes nothing until what is unavailable is corrected"


def _training_left(plan: ExperimentPlan, pending: Container[str], trained_networks: Path) -> str:
    """The epochs that networks still train for pending cells, and how many of these networks are trained."""
    left = dict[str, int]()
    users = [(task.reference, (task.cell,)) for task in plan.references] + [(c.reference, c.cells) for c in plan.chains]
    for network, cells in users:
        if any(cell.key in pending for cell in cells):
            epochs = network.epochs_left(cells[0].epochs_train, trained_networks)
            left[network.key] = max(epochs, left.get(network.key, 0))
    trained = sum(not epochs for epochs in left.values())
    known = f" ({plural(trained, 'network')} already trained)" if trained else ""
    return f"{plural(sum(left.values()), 'epoch')} of training{known}"


def _settings(plan: ExperimentPlan) -> Iterator[str]:
    p = plan.file.parameters
    experiments = p.experiments
    networks = plural(experiments.num_nets, "trained network")
    rewind = f", rewind {experiments.rewind}" if experiments.rewind is not None else ""
    yield f"{plan.name}  ({plan.file.path})"
    yield f"  network    {p.network.name} on {p.network.dataset.name}, {networks}"
    yield f"  mode       {experiments.mode}{rewind}, budget in {experiments.budget}"
    for variant in plan.file.variants:
        name = f" {variant.name}:" if variant.name else ""
        p = variant.parameters
        each = "cell" if p.experiments.search is None else "network"
        per = each if p.retraining.tune is None else "trial"
        yield f"  epochs    {name} {p.training.num_epochs} training, {planned_epochs(p)} retraining per {per}"
        if p.retraining.tune is not None:
            tried = ", ".join(f"{key} in {compact(values)}" for key, values in p.retraining.tune.items())
            yield f"  tune      {name} {tried}: {num_trials(p)} trials per {each}"
        if p.experiments.search is not None:
            yield f"  search    {name} {_in_words(p.experiments.search)}"
    for chain in {chain.method.label: chain for chain in plan.chains}.values():
        budget = chain.variant.parameters.experiments.budget
        limited = [] if chain.method.fixed_size and budget.counted else [limit.quantity for limit in budget.limits]
        if same := [name for name in limited if name in chain.method.never_lowers]:
            yield f"  unchanged  {chain.method.label} does not lower {' and '.join(same)}"
    keeps = dict.fromkeys(cell.keep for cell in plan.cells if cell.method != "Reference" and not cell.fixed_size)
    if keeps:
        yield f"  keep       {', '.join(f'{keep:.4g}' for keep in keeps)}"


def _in_words(search: Search) -> str:
    points = 100 * search.accuracy_loss
    return (
        f"the smallest network that loses at most {points:g} {'point' if points == 1 else 'points'} of validation "
        f"top-1, at most {plural(search.samples, 'network')} per cell, smallest keep {search.smallest:g}"
    )
