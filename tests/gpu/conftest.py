"""What the tests on a GPU share. EXPERIMENT_TEST_DEVICE=cpu runs them without one."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("EXPERIMENT_TEST_DEVICE", "cuda"))
