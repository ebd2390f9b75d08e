"""How long an experiment takes here, estimated from a few forward passes."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from experiment.errors import plural
from experiment.inputs import call_network
from experiment.layers.forward_pass import evaluating
from experiment.measure.latency import repeated
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded
from experiment.run.grid.hardware import Machine
from experiment.run.grid.plan import ExperimentPlan
from experiment.start.look_at_data import DataLook
from experiment.tasks import find_task

PASSES = 3  # forward passes that a step of training takes
TEST = 0.1  # epochs that the test of a cell takes
BATCH, FEWEST_PASSES, SECONDS = 8, 2, 0.3  # of the forward passes that are timed


def seconds_per_sample(
    name: str, settings: Mapping[str, Any], outputs: int, look: DataLook, machine: Machine
) -> float | None:
    """Of training a network, on one thread or a GPU; None if the inputs are unknown.

    Raises: ConfigError: the network does not fit the data.
    """
    if look.shape is None:
        return None
    scored = find_task(look.task).outputs
    with seeded("duration"):
        network = make_network(name, settings, look.shape, outputs, example=look.example, outputs=scored)
    network = network.to(machine.device)
    inputs = repeated(network, look.shape if look.example is None else look.example, BATCH)
    clock = time.process_time if machine.kind == "cpu" else time.perf_counter  # of all threads, whatever else runs
    with evaluating(network), torch.no_grad():
        call_network(network, inputs)
        started, passes = clock(), 0
        while passes < FEWEST_PASSES or clock() - started < SECONDS:
            call_network(network, inputs)
            if machine.kind == "cuda":
                torch.cuda.synchronize()
            passes += 1
    return PASSES * (clock() - started) / passes / BATCH


def epochs_of(plan: ExperimentPlan) -> float:
    """Epochs of all trainings of an experiment, and their tests."""
    references = sum(task.cell.epochs_train for task in plan.references)
    return references + sum(c.epochs_retrain for chain in plan.chains for c in chain.cells) + TEST * len(plan.cells)


def in_words(seconds: float) -> str:
    """A rough duration: `40 seconds`, `3 minutes`, `9 hours`."""
    if seconds < 100:
        return plural(max(1, round(seconds)), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.0f} hours"
