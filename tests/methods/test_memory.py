"""The memory of compressing: the network, one copy of it, and what one layer takes, counted in tensors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiment import compress, save_network
from experiment.layers.plan import State
from experiment.measure import count
from experiment.measure.memory import _Storages
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.lowrank import pca
from experiment.random_streams import generator, seeded

WIDTH, BLOCKS, TOKENS = 192, 16, 16
LAYER = WIDTH * 4 * WIDTH  # weights of the largest layer


class Block(nn.Module):
    """A feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return changed


def made() -> nn.Sequential:
    with seeded("test_memory"):
        return nn.Sequential(nn.Sequential(*(Block() for _ in range(BLOCKS))), nn.Linear(WIDTH, 8)).eval().bfloat16()


def inputs(number: int = 4) -> Tensor:
    return torch.randn(number, TOKENS, WIDTH, generator=generator("test_memory")).bfloat16()


def bytes_of(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


INT4 = {"dtype": "int4", "group_size": 32}
DIRECTIONS = 1.0  # of SVD-LLM, in float32, times the network: up to the largest rank that makes a layer smaller


@pytest.mark.parametrize(
    ("method", "settings", "copies", "a_weight"),
    [("WT", {}, 1.5, 10), ("Quantize", INT4, 1.0, 4), ("SVD-LLM", {}, DIRECTIONS + 0.5, 32)],
)
def test_beside_the_network(
    method: str, settings: dict[str, object], copies: float, a_weight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is half as large if half is kept; a mask takes half of a weight in bfloat16.

    Args:
        copies: sizes of what grows with the network, times the network.
        a_weight: bytes that a step needs for every weight of one layer.
    """
    monkeypatch.setattr(pca, "COVARIANCES", 1)
    network, x = made(), inputs()
    keep = None if method == "Quantize" else 0.5
    with _Storages([*network.parameters(), x], 0) as storages:
        compress(network, method, keep=keep, example=x[:1], data=x, progress=False, settings=settings)
    assert storages.peak <= copies * bytes_of(network) + a_weight * LAYER


@pytest.mark.parametrize(
    ("method", "settings", "packed", "a_weight"), [("WT", {}, 0.5 + 1 / 16, 4), ("Quantize", INT4, 0.32, 16)]
)
def test_of_saving(tmp_path: Path, method: str, settings: dict[str, object], packed: float, a_weight: int) -> None:
    """What the file holds and one weight, not all weights in each of their forms."""
    network, x = made(), inputs()
    keep = None if method == "Quantize" else 0.5
    result = compress(network, method, keep=keep, example=x[:1], progress=False, settings=settings)
    with _Storages([*result.network.parameters(), *result.network.buffers()], 0) as storages:
        save_network(result, tmp_path / "network.pt")
    assert storages.peak <= packed * bytes_of(network) + a_weight * LAYER
    assert (tmp_path / "network.pt").stat().st_size <= packed * bytes_of(network) + 2**16


def test_parts_give_what_all_layers_together_give(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = made(), inputs(11)
    spec = configure("SVD-LLM", {})
    state = State(network, x[:1])

    def found(covariances: int) -> tuple[dict[str, Tensor], object]:
        monkeypatch.setattr(pca, "COVARIANCES", covariances)
        method = make_method(spec.entry, spec.settings)
        original = count(network, state.example)
        made = Compressor(method, state, original, Calibration(x), generator("test_memory")).compress(0.6)
        return made.network.state_dict(), (made.plan.factors, made.plan.details)

    (whole, plan), (parts, same_plan) = found(2**30), found(1)
    assert plan == same_plan
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
