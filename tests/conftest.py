"""What all tests share: one thread, the folder of real data, and the skip of tests that need it where it is absent."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT / "data" / "datasets"


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # Autograd decides once whether it needs threads, which forbid forks; after torch.export it thinks that it does.
    torch.ones(1, requires_grad=True).backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("MNIST", "CIFAR10-jpeg") if not (DATASETS / name).is_dir()]
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"needs real data: data/datasets/{missing[0]} is absent")
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def data_dir() -> Path:
    """The folder of real datasets; tests that read it carry the mark `data`."""
    return DATASETS
