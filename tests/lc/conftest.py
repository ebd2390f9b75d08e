"""A small trained network and the images that it learnt, for compression to start from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.python_samples import PairData
from experiment.random_streams import generator, seeded

CPU = torch.device("cpu")


def pairs(count: int, name: str = "train") -> tuple[Tensor, Tensor]:
    """Points of four classes around the corners of a square, in six dimensions."""
    y = torch.randint(0, 4, (count,), generator=generator(name, "labels"))
    x = 0.4 * torch.randn(count, 6, generator=generator(name, "noise"))
    x[:, 0] += 2.0 * (y // 2) - 1.0
    x[:, 1] += 2.0 * (y % 2) - 1.0
    return x, y


def make_network() -> nn.Sequential:
    with seeded("lc network"):
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4, bias=False)
        )


@pytest.fixture
def make_pairs() -> Callable[..., tuple[Tensor, Tensor]]:
    """The maker of samples, for tests that need their own."""
    return pairs


@pytest.fixture
def data() -> dict[str, Any]:
    """Training and validation samples, and an example input, as the optimizer takes them."""
    train, valid = (PairData(name, pairs(n, name), CPU) for name, n in (("train", 70), ("valid", 40)))
    return {"train": train, "valid": valid, "example": valid.first(1)[0]}


@pytest.fixture
def network() -> nn.Sequential:
    """Trained for some epochs: far from random, not yet done."""
    network = make_network()
    x, y = pairs(70)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    with seeded("lc training"):
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network.eval()
