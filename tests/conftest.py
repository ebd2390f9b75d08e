"""What all tests share: one thread, the folder of real data, and the skip of tests that need it where it is absent."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.training import checkpoint
from experiment.training.processor import use_threads

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT / "data" / "datasets"
GPU_TESTS = "EXPERIMENT_TEST_DEVICE"  # the device of the tests that need a GPU


def pytest_configure(config: pytest.Config) -> None:
    use_threads(1)
    # Autograd decides once whether it needs threads, which forbid forks; after torch.export it thinks that it does.
    torch.ones(1, requires_grad=True).backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("MNIST", "CIFAR10-jpeg") if not (DATASETS / name).is_dir()]
    reasons = {"data": f"needs real data: data/datasets/{missing[0]} is absent"} if missing else {}
    if GPU_TESTS not in os.environ and not torch.cuda.is_available():
        reasons["gpu"] = f"needs a GPU; {GPU_TESTS}=cpu runs it without"
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # begun first: no process waits for another at the end
    for mark, reason in reasons.items():
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed also formats the stack, for devices in waiting


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interruption leaves does not depend on how long an epoch and writing its checkpoint take."""
    monkeypatch.setattr(checkpoint, "MAX_SHARE", float("inf"))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that torch.compile makes from now on; they run as they are."""
    made: list[torch.fx.GraphModule] = []
    traced = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda network, **_: traced(network, dynamic=False, backend=backend))
    return made


@pytest.fixture
def data_dir() -> Path:
    """The folder of real datasets; tests that read it carry the mark `data`."""
    return DATASETS
