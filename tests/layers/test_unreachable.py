"""The reasons why parts of a network cannot be compressed: one for every kind of part."""

import logging

import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.layers.unreachable import unreached
from experiment.methods.out_of_reach import MOST_NAMES


class Own(nn.Linear):
    """Twice what a linear layer computes."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Matrix(nn.Module):
    """A product with a parameter, and a norm or not."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.randn(8, 8)), nn.Sequential(*inner) if inner else None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.inner is None else self.inner(x @ self.weight)


class Many(nn.Module):
    """Layers and parameters of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.renormalised, self.bag = nn.Embedding(9, 8, max_norm=1.0), nn.EmbeddingBag(9, 8)
        self.lstm, self.cell = nn.LSTM(8, 8, batch_first=True), nn.GRUCell(8, 8)
        self.bilinear, self.own, self.alone = nn.Bilinear(8, 8, 8), Own(8, 8), Matrix()
        self.around, self.listed = Matrix(nn.LayerNorm(8)), nn.ParameterList([nn.Parameter(torch.randn(8, 8))])
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tied, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.tied.weight
        self.unused, self.read, self.plain = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.grouped, self.up = nn.Conv1d(8, 8, 3, groups=2), nn.ConvTranspose1d(8, 8, 3, groups=2)
        self.integers = nn.Parameter(torch.ones(3, 4, dtype=torch.int64), requires_grad=False)
        self.forgotten, self.norm = nn.Parameter(torch.ones(3, 4)), nn.LayerNorm((6, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.lstm(self.renormalised(tokens) + self.bag(tokens).unsqueeze(1))[0]
        x = self.around(self.alone(self.own(self.bilinear(x, x))))
        x = self.norm(x + self.attention(x, x, x)[0]) @ self.read.weight @ self.listed[0]
        x = self.up(self.grouped(self.again(self.tied(x)).transpose(1, 2))).mean(2)
        out: Tensor = self.plain(self.cell(x))
        return out


NO_LAYER, OTHER = "not a linear layer, convolution or embedding", "not of a kind that this method compresses"
REASONS = {
    "integers": "not floating-point",
    "forgotten": "not used for the example",
    "renormalised": "scales its rows down to max_norm in the forward pass",
    "bag": NO_LAYER,
    "lstm": NO_LAYER,
    "cell": NO_LAYER,
    "bilinear": NO_LAYER,
    "own": "has a forward pass of its own",
    "alone": NO_LAYER,
    "around.weight": OTHER,
    "listed": "not called, only its weight is read",
    "attention": NO_LAYER,
    "tied": "shares parameters with again",
    "again": "shares parameters with tied",
    "unused": "not called for the example",
    "read": "not called, only its weight is read",
    "plain": OTHER,
    "grouped": "grouped",
    "up": "grouped",
    "norm": NO_LAYER,
}


def many() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Many().eval(), torch.randint(0, 9, (2, 6))


def test_every_kind_has_a_reason() -> None:
    network, tokens = many()
    found = {part.name: part.reason for part in unreached(network, tokens, ())}
    assert found == REASONS
    assert sum(part.parameters for part in unreached(network, tokens, ())) == sum(
        p.numel() for name, p in network.named_parameters() if not name.startswith("around.inner")
    )


@pytest.mark.parametrize("method", ["SVD", "SiPP", "Uniform Filters", "Messi3"])
def test_no_method_leaves_a_reason_out(method: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = many()[1]
    network = nn.Sequential(many()[0], nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    with caplog.at_level(logging.WARNING, "experiment"):
        compress(network.eval(), method, keep=0.9, example=tokens, data=tokens)
    (text,) = [r.getMessage() for r in caplog.records if "cannot be compressed: " in r.getMessage()]
    named = text.partition("cannot be compressed: ")[2].partition(" more. Of the rest")[0].rpartition(" and ")[0]
    parts = named.split("), ")
    assert len(parts) == MOST_NAMES
    assert all(", " in part.partition(" (")[2] for part in parts), text
