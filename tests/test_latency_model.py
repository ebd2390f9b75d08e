"""The latency model without a clock: what is measured, how it is interpolated, kept, and added up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiment.layers.compressible import trace_layers
from experiment.layers.forms import UNMASKED, Forms
from experiment.measure import latency_model
from experiment.measure.forward_pieces import Leaf, Operation, Pieces, pieces
from experiment.measure.latency_model import LatencyModel, LatencyTable


class Net(nn.Module):
    """Modules and operations of all kinds that pieces tell apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.act = nn.ReLU()
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        y = functional.relu(self.depth(y) + y)
        out: Tensor = self.head(y.mean((2, 3)))
        return out


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device on which everything takes as long as it has elements in weights and input, and what has parts five times
    as long; notes what was measured."""
    measured: list[str] = []

    def milliseconds(module: Callable[..., object], x: object, threads: int, seconds: float) -> float:
        module = module.copies[0] if isinstance(module, latency_model._InTurns) else module
        weights = sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0
        tensors = [x] if isinstance(x, Tensor) else [v for v in x if isinstance(v, Tensor)]  # type: ignore[attr-defined]
        with torch.no_grad():
            module(x) if isinstance(x, Tensor) else module(*x)  # type: ignore[misc]
        measured.append(type(module).__name__)
        parts = isinstance(module, nn.Module) and any(module.children())
        return float(weights + sum(t.numel() for t in tensors)) * (5 if parts else 1)

    monkeypatch.setattr(latency_model, "_milliseconds", milliseconds)
    return measured


def test_pieces_are_leaf_modules_and_operations_outside_them() -> None:
    found = pieces(Net(8).eval(), torch.zeros(2, 3, 6, 6))
    modules = [type(piece.module).__name__ for piece in found.pieces if isinstance(piece, Leaf)]
    assert modules == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "Linear"]
    operations = [str(piece.function) for piece in found.pieces if isinstance(piece, Operation)]
    assert operations == ["aten.add.Tensor", "aten.relu.default", "aten.mean.dim"]
    assert found.containers == 1
    images, rows = 2 * 8 * 36, 2 * 8 + 2 * 4
    assert found.touched == 4 * (6 * images + rows + sum(p.numel() for p in Net(8).parameters()))


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pieces_of_other_widths_have_the_memory_format_of_the_network(
    size: int, memory_format: torch.memory_format
) -> None:
    """A kernel has to convert weights of another format than its input, which takes longer than its work."""
    network = Net(8).eval().to(memory_format=memory_format)
    x = torch.zeros(2, 3, size, size).contiguous(memory_format=memory_format)
    for piece in pieces(network, x).pieces:
        if isinstance(piece, Leaf) and piece.x.dim() == 4:
            wide, y = piece.make(tuple(2 * width for width in piece.widths))
            own, _ = piece.make(piece.widths)
            assert axes_by_stride(y) == axes_by_stride(piece.x)
            for a, b in zip(wide.parameters(), own.parameters(), strict=True):
                assert axes_by_stride(a) == axes_by_stride(b)


def axes_by_stride(x: Tensor) -> list[int]:
    return sorted(range(x.dim()), key=lambda i: (x.stride(i), -i))


def test_results_of_several_tensors_count_and_every_view_takes_the_same_time(clock: list[str]) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x).view(2, 5, 2, 4).transpose(1, 2)
            return functional.scaled_dot_product_attention(x, x, x)

    kinds = [piece.kind for piece in pieces(Attention(), torch.zeros(2, 5, 8)).pieces]
    assert kinds[1:3] == ["aten.view.default", "aten.transpose.int"]
    assert any("attention" in kind and "2x2x5x4" in kind for kind in kinds)


def time_of(table: LatencyTable, piece: Leaf | Operation) -> float:
    return table.sum(Pieces([piece]), 2**20)


def test_times_are_exact_at_measured_widths_and_linear_between_them(clock: list[str]) -> None:
    table = LatencyTable(None, 1)
    for width in (8, 16, 20):  # measured themselves
        for piece in pieces(Net(width).eval(), torch.zeros(2, 3, 6, 6)).pieces:
            module, x = piece.make(piece.widths)
            assert time_of(table, piece) == latency_model._milliseconds(module, x, 1, 0.0)
    norms = {}
    for width in (41, 43, 47):  # odd ones between 40 and 48: kernels treat multiples of powers of two differently
        leaf = pieces(Net(width).eval(), torch.zeros(2, 3, 6, 6)).pieces[1]
        norms[width] = time_of(table, leaf)
    assert norms[43] == pytest.approx(norms[41] + 2 / 6 * (norms[47] - norms[41]))


def test_copies_are_called_in_turns_and_keep_their_outputs() -> None:
    x = torch.ones(1, 4)
    turns = latency_model._InTurns(nn.Linear(4, 3), x, 3)
    assert len({id(module) for module in turns.copies}) == 3
    first = [turns(x) for _ in range(3)]
    assert [any(output is kept for kept in turns.outputs) for output in first] == [True] * 3
    turns(x)
    assert sum(any(output is kept for kept in turns.outputs) for output in first) == 2


@pytest.mark.parametrize(("milliseconds", "copies"), [(1e-6, 16), (1e3, 2)])
def test_pieces_that_compute_for_long_need_no_cold_memory(
    milliseconds: float, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def clock(module: object, x: object, threads: int, seconds: float) -> float:
        found.append(len(module.copies) if isinstance(module, latency_model._InTurns) else 1)
        return milliseconds

    monkeypatch.setattr(latency_model, "_milliseconds", clock)
    leaf = pieces(nn.Linear(64, 64), torch.zeros(1, 64)).pieces[0]
    LatencyTable(None, 1).measure(leaf, leaf.widths, 17 * 4 * (64 * 64 + 64 + 64) - 1)
    assert found == [1, copies]


def test_measurements_are_kept_and_used_again(tmp_path: Path, clock: list[str]) -> None:
    path, x = tmp_path / "latencies" / "cpu-1.json", torch.zeros(2, 3, 6, 6)
    first = LatencyModel.of(Net(8), x, 2, LatencyTable(path, 1)).predict(Net(6))
    before = len(clock)
    again = LatencyModel.of(Net(8), x, 2, LatencyTable(path, 1))
    assert again.predict(Net(6)) == first
    assert not clock[before:]  # the network itself neither, so that a share of its latency is the same for all methods
    for damaged in ("{", "[]", '{"format": 1}', '{"format": 2, "milliseconds": {}}', '{"milliseconds": {"a": -1}}'):
        path.write_text(damaged)
        assert LatencyModel.of(Net(8), x, 2, LatencyTable(path, 1)).predict(Net(6)) == first


def test_the_network_itself_is_predicted_exactly_and_a_layer_is_priced_like_its_factors(clock: list[str]) -> None:
    network, x = Net(16).eval(), torch.zeros(2, 3, 6, 6)
    model = LatencyModel.of(network, x, 2, LatencyTable(None, 1))
    assert model.predict(network) == pytest.approx(model.dense_ms)
    assert model.measure(network) == pytest.approx(model.dense_ms)
    info = trace_layers(network, x[:1])["head"]
    ranks = np.array([1, 2, 3, 4, 0])
    ones, whole = np.ones(5, np.int64), np.full(5, UNMASKED)
    prices = model.price(info, network.head, Forms(ranks, ones, 0 * ones, whole, np.full(5, "")), "contiguous")
    assert (np.diff(prices[:-1]) >= 0).all()
    weights = [16 * r + 4 * r + 4 for r in (1, 2, 4)]
    inputs = [2 * 16 + 2 * r for r in (1, 2, 4)]
    outputs = [2 * r + 2 * 4 for r in (1, 2, 4)]
    rests = [4 * model.original[0].rest_ms * (w + o) for w, o in zip(weights, outputs, strict=True)]
    added = np.array(weights) + np.array(inputs) + np.array(rests)
    assert np.diff(prices[[0, 1, 3]]) == pytest.approx(1e6 * np.diff(added), rel=0.2)
