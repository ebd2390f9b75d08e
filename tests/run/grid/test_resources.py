"""How many cells a machine bears at once: by cores, by GPUs and shares of them, by what the parameter file says."""

from pathlib import Path
from typing import Any, cast

import pytest

from experiment.config import load
from experiment.run.cell.context import Context
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.cells import Chain
from experiment.run.grid.hardware import Machine, Resources, resources_of
from experiment.run.run_experiments import Options, _announcement, _num_workers
from experiment.run.workers.queue import Work


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "cells"),
    [
        (Resources(1, 0), 8, 0, 8),
        (Resources(3, 0), 8, 4, 2),
        (Resources(9, 0), 8, 0, 0),
        (Resources(1, 1), 8, 2, 2),
        (Resources(1, 1), 8, 0, 0),
        (Resources(1, 0.25), 16, 2, 8),
        (Resources(4, 0.25), 16, 2, 4),
        (Resources(1, 0.4), 16, 2, 4),  # two on each GPU, although 2 / 0.4 is five
        (Resources(1, 0.1), 100, 1, 10),
        (Resources(1, 1 / 3), 16, 1, 3),
    ],
)
def test_what_fits_on_a_machine(resources: Resources, cpus: float, gpus: float, cells: int) -> None:
    assert resources.fit(cpus, gpus) == cells


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [
        ({}, "cpu", Resources(2, 0)),
        ({}, "cuda", Resources(2, 1)),
        ({"cpus": 4}, "cuda:1", Resources(4, 1)),
        ({"cpus": 1, "gpus": 0.5}, "cuda", Resources(1, 0.5)),
        ({"gpus": 0.5}, "cpu", Resources(2, 0)),
    ],
)
def test_what_a_cell_takes_up(
    write: Any, small: dict[str, Any], given: dict[str, Any], device: str, expected: Resources
) -> None:
    p = load(write(small | {"threads": 2, "resources": given})).parameters
    assert resources_of(p, Machine(device)) == expected


@pytest.mark.parametrize(
    ("resources", "device", "asked", "workers"),
    [
        (Resources(1, 0), "cpu", None, 12),
        (Resources(5, 0), "cpu", None, 2),
        (Resources(13, 0), "cpu", None, 1),
        (Resources(5, 0), "cpu", 7, 7),
        (Resources(1, 1), "cuda", None, 3),
        (Resources(1, 0.25), "cuda", None, 12),
        (Resources(1, 0.25), "cuda", 2, 2),
        (Resources(1, 0.25), "cuda:1", None, 4),
        (Resources(1, 0.05), "cuda", None, 20),  # there is no more work
    ],
)
def test_workers_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, resources: Resources, device: str, asked: int | None, workers: int
) -> None:
    monkeypatch.setattr("experiment.run.run_experiments.usable_cores", lambda: 12)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert (
        _num_workers(Options(workers=asked), [resources, Resources(1, resources.gpus)], Machine(device), 20) == workers
    )


@pytest.mark.parametrize(("cores", "warned"), [(1, True), (2, False)])
def test_more_threads_than_cores_are_announced(monkeypatch: pytest.MonkeyPatch, cores: int, warned: bool) -> None:
    monkeypatch.setattr("experiment.run.run_experiments.usable_cores", lambda: cores)
    folders = Directories(Path("results"), Path("networks"), Path("datasets"))
    context = Context(Store(Path("small")), folders, Machine("cpu"), 1, Resources(1, 0))
    lines = list(_announcement([Work(0, "0-a", cast(Chain, None), None, 1, ())], 2, [context]))
    assert lines[0] == "0 cells to compute on cpu, 2 workers with 1 thread"
    assert lines[1:] == ["  2 threads on 1 core slow each other down: use a smaller -j"] * warned
