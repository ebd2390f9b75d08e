"""Peak memory of a forward pass: against hand-worked numbers."""

import pytest
import torch
from torch import Tensor, nn

from experiment.inputs import call_network
from experiment.measure import Memory, measure_memory, memory, peak_memory
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded


class Residual(nn.Module):
    """The input lives until it is added."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(10, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = x + 1  # 10
        return h + self.down(self.up(h).relu())  # x, h, up, relu: 220; then x, h, relu, down: 130


class Reads(nn.Module):
    """Fake tensors have no values to read."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 6), nn.Linear(6, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.table(ids) * mask[..., None])}


IN_PLACE = nn.Sequential(nn.Linear(10, 100, bias=False), nn.ReLU(inplace=True), nn.Linear(100, 1, bias=False))


@pytest.mark.parametrize(
    ("network", "sample", "weights", "activations"),
    [
        (nn.Linear(10, 5), torch.ones(1, 10), 55, 15),
        (IN_PLACE, torch.ones(1, 10), 1100, 111),
        (Residual(), torch.ones(1, 10), 2110, 220),
        (nn.BatchNorm2d(4), torch.ones(1, 4, 3, 3), 16 + 2, 2 * 36),  # one count of 8 bytes
        (nn.Flatten(), torch.ones(1, 4, 3), 0, 12),  # a view
        (Reads(), torch.ones(1, 8), 0, 16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 8])
def test_by_hand(network: nn.Module, sample: Tensor, weights: int, activations: int, batch: int) -> None:
    assert measure_memory(network, sample, batch).weights == 4 * weights
    found = measure_memory(network, sample, batch).activations
    assert found == 4 * activations * batch
    assert peak_memory(network, sample, batch) == found + 4 * weights


def test_inputs_by_name_and_a_shared_table() -> None:
    inputs = {"ids": torch.zeros(1, 7, dtype=torch.int64), "mask": torch.ones(1, 7)}
    tokens = 3 * 7
    held = tokens * (8 + 4)  # two inputs
    product = tokens * 4 * (6 + 6)  # rows of the table, and their product
    logits = tokens * 4 * (6 + 30)  # the rows are gone
    assert measure_memory(Named(), inputs, 3) == Memory(3, 4 * 180, held + max(product, logits))


def test_fake_tensors_take_what_real_ones_take() -> None:
    with seeded("memory"):
        network = make_network("resnet20", {}, (3, 16, 16), 10).train()
    x = torch.zeros(5, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = measure_memory(network, (3, 16, 16), 5)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        network.eval()
        real = memory._peak_of(lambda inputs: call_network(network, inputs), x, network.state_dict())
    assert found.activations == real
    assert found == measure_memory(network, x[:1], 5)
