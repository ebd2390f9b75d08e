"""Tucker: errors and bases against HOSVD and HOOI in numpy, sizes by hand, other layers, masks and rounding."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment import compress, load_network, save_network
from experiment.layers.build import expand
from experiment.layers.factored_layers import product
from experiment.layers.masks import bake_masks
from experiment.layers.plan import State
from experiment.layers.quantized_weights import named_dtypes
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Budget, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.layer_table import layer_rows
from experiment.methods.lowrank.hooi import hooi
from experiment.methods.lowrank.tucker import find_options
from experiment.methods.starting_state import start_of
from experiment.random_streams import generator, seeded

ALLOCATIONS = ("sum", "minimax", "uniform")


def compressor(state: State, **settings: object) -> Compressor:
    entry = METHODS["Tucker"]
    method = make_method(entry, configure(entry, settings).settings)
    return Compressor(method, state, count(state.network, state.example), None, generator("test_tucker"))


def low_rank(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer with a weight whose singular values fall along both sides."""
    W = layer.weight
    with torch.no_grad(), seeded("test_tucker", seed):
        G = torch.randn(W.shape)
        for side in (0, 1):
            n = W.shape[side]
            basis = torch.linalg.qr(torch.randn(n, n))[0] * 0.8 ** torch.arange(n)
            G = torch.tensordot(basis, G, dims=([1], [side])).movedim(0, side)
        W.copy_(G / G.norm() * W.numel() ** 0.5 / 5)
    return layer


def single(layer: nn.Module, *grid: int) -> State:
    channels = layer.in_channels
    return State(nn.Sequential(layer).eval(), torch.randn(1, channels, *grid, generator=generator("grid", *grid)))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(10, 12, 3, padding=1), (6, 6)),
    "stride, dilation": (lambda: nn.Conv2d(12, 10, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (9, 12)),
    "same, reflected": (lambda: nn.Conv2d(9, 10, 3, padding="same", padding_mode="reflect", bias=False), (7, 6)),
    "signals": (lambda: nn.Conv1d(12, 14, 5, stride=2, padding=1), (15,)),
    "volumes": (lambda: nn.Conv3d(6, 8, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 0)), (4, 5, 6)),
    "few inputs": (lambda: nn.Conv2d(3, 40, 3, stride=2), (9, 9)),
}


@pytest.fixture(params=LAYERS)
def state(request: pytest.FixtureRequest) -> State:
    make, grid = LAYERS[request.param]
    with seeded("test_tucker"):
        return single(low_rank(make()), *grid)


def cube(layer: nn.Module) -> np.ndarray:
    return layer.weight.detach().flatten(2).double().numpy()


def left_vectors(A: np.ndarray, rank: int) -> np.ndarray:
    return np.linalg.svd(A.reshape(len(A), -1), full_matrices=False)[0][:, :rank]


def restored(W: np.ndarray, U: np.ndarray, V: np.ndarray) -> np.ndarray:
    """W projected onto both spans."""
    return np.einsum("fck,fg,cd->gdk", W, U @ U.T, V @ V.T)


def numpy_hosvd(W: np.ndarray, R: int, Q: int) -> np.ndarray:
    return restored(W, left_vectors(W, R), left_vectors(W.transpose(1, 0, 2), Q))


def numpy_hooi(W: np.ndarray, R: int, Q: int, steps: int = 200) -> np.ndarray:
    V = left_vectors(W.transpose(1, 0, 2), Q)
    for _ in range(steps):
        U = left_vectors(np.einsum("fck,cq->fqk", W, V), R)
        V = left_vectors(np.einsum("fck,fr->crk", W, U), Q)
    return restored(W, U, V)


def lost(W: np.ndarray, What: np.ndarray) -> float:
    return float(np.square(W - What).sum() / np.square(W).sum())


def test_errors_are_those_of_the_hosvd_and_no_useful_pair_is_left_out(state: State) -> None:
    layer = state.network[0]
    W, (F, C) = cube(layer), layer.weight.shape[:2]
    info = start_of(state).layers["0"]
    options = find_options(start_of(state), info)
    found = list(zip(options.outputs.tolist(), options.inputs.tolist(), strict=True))
    assert found[-1] == (F, C)
    for (R, Q), error in zip(found, options.errors, strict=True):
        assert error == pytest.approx(lost(W, numpy_hosvd(W, R, Q)), abs=1e-9)
    K, bias = W.shape[2], 0 if layer.bias is None else F
    before, after = (int(np.prod(g[0])) for g in (info.input_grids, info.output_grids))
    for R, Q in itertools.product(range(1, min(F, C * K + 1)), range(1, C)):
        outer, inner, core = R * F, Q * C, R * Q * K
        size, work = outer + inner + core + bias, (outer + core) * after + inner * before
        if size >= W.size + bias or work > W.size * after:
            continue
        error = lost(W, numpy_hosvd(W, R, Q))
        for quantity, cost in (("parameters", size), ("flops", work)):
            assert options.errors[options.costs[quantity] <= cost].min() <= error + 1e-9


@pytest.mark.parametrize("keep", [0.7, 0.4])
def test_bases_come_as_close_as_hooi_in_numpy(keep: float, state: State) -> None:
    layer = state.network[0]
    W, made = cube(layer), compressor(state)
    compressed = made.compress(keep)
    options = compressed.plan.details["0"]
    R, Q = made.analysis.convolutions["0"].ranks(compressed.plan.factors)
    What = product(compressed.network[0]).detach().flatten(2).numpy()
    error = lost(W, What)
    assert error == pytest.approx(lost(W, numpy_hooi(W, R, Q)), rel=1e-3, abs=1e-9)
    assert error == pytest.approx(options["relative_error"], rel=1e-3)
    hosvd = lost(W, numpy_hosvd(W, R, Q))
    assert error <= hosvd + 1e-9
    tails = [
        np.square(np.linalg.svd(A.reshape(len(A), -1), compute_uv=False)[rank:]).sum() / np.square(W).sum()
        for A, rank in ((W, R), (W.transpose(1, 0, 2), Q))
    ]
    assert max(tails) - 1e-9 <= error <= hosvd + 1e-9 <= sum(tails) + 2e-9
    norms = [np.linalg.norm(A.reshape(len(A), -1), 2) for A in (W - What, W)]
    assert options["relative_error_exact"] == pytest.approx(norms[0] / norms[1], rel=1e-3)


@pytest.mark.parametrize("ranks", [(7, 5), (9, 8), (2, 8), (9, 3), (1, 1)])
def test_hooi_is_orthonormal_and_its_core_holds_the_rest(ranks: tuple[int, int]) -> None:
    W = torch.randn(9, 8, 6, generator=generator("hooi", *ranks), dtype=torch.float64)
    U, G, V = hooi(W, *ranks)
    assert (U.shape, G.shape, V.shape) == ((9, ranks[0]), (*ranks, 6), (8, ranks[1]))
    for basis in (U, V):
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    torch.testing.assert_close(G, torch.einsum("fck,fr,cq->rqk", W, U, V))
    if ranks == (9, 8):
        torch.testing.assert_close(torch.einsum("fr,rqk,cq->fck", U, G, V), W)


def test_zero_weights_and_exact_ranks_lose_nothing() -> None:
    with seeded("exact"):
        layer = nn.Conv2d(10, 12, 3)
        core, U, V = torch.randn(2, 3, 3, 3), torch.randn(12, 2), torch.randn(10, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("rqxy,fr,cq->fcxy", core, U, V))
    state = single(layer, 5, 5)
    compressed = compressor(state).compress(0.2)
    torch.testing.assert_close(compressed.network(state.example), state.network(state.example), rtol=1e-4, atol=1e-4)
    nn.init.zeros_(layer.weight)
    zero = compressor(state).compress(0.2)
    assert zero.plan.details["0"]["relative_error"] == 0
    torch.testing.assert_close(zero.network(state.example), state.network(state.example))


@pytest.mark.parametrize("quantity", ["parameters", "flops"])
def test_every_kind_of_convolution_computes_with_its_product_within_the_budget(quantity: Any, state: State) -> None:
    made, forms = compressor(state), set()
    for keep in (0.9, 0.7, 0.5, 0.3, 0.2):
        compressed = made.compress(keep, quantity)
        assert compressed.plan.parameters == compressed.count.parameters
        assert getattr(compressed.count, quantity) <= keep * getattr(made.original, quantity)
        forms.add(tuple(compressed.plan.factors))
        x = torch.randn(3, *state.example.shape[1:], generator=generator("x"))
        whole = expand(compressed.network, state.network, compressed.plan, state.example)
        torch.testing.assert_close(compressed.network(x), whole.network(x), rtol=1e-4, atol=1e-4)
    assert ("0", "0.encoder") in forms or state.network[0].in_channels == 3


def test_sides_with_full_rank_have_no_convolution() -> None:
    """Three channels of images stay; a network of two sides of very different spectra keeps the flat one."""
    wide = compressor(single(low_rank(nn.Conv2d(3, 40, 3)), 9, 9)).compress(0.5)
    assert list(wide.plan.factors) == ["0"]
    assert wide.plan.factors["0"].folding == 0
    with seeded("sides"):
        layer = nn.Conv2d(40, 4, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.einsum("fqxy,cq->fcxy", torch.randn(4, 5, 3, 3), torch.randn(40, 5)))
    narrow = compressor(single(layer, 9, 9)).compress(0.5)
    assert list(narrow.plan.factors) == ["0"]
    assert narrow.plan.factors["0"].folding == 3
    assert narrow.plan.details["0"]["rank"] >= 5
    assert narrow.plan.details["0"]["relative_error"] < 1e-9


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 20, 3, padding=1)
        self.b = nn.Conv2d(20, 24, 1)
        self.c = nn.Conv2d(24, 24, 3, groups=2, stride=2)
        self.d = nn.ConvTranspose2d(24, 12, 3, stride=2)
        self.e = nn.Conv2d(12, 16, 3)
        self.fc = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))
        return self.fc(torch.relu(self.e(torch.relu(y))).mean((2, 3)))


def several() -> State:
    with seeded("several"):
        network = Several()
    for name in ("a", "b", "e"):
        low_rank(network.get_submodule(name))
    return State(network.eval(), torch.randn(1, 8, 10, 10, generator=generator("several")))


def test_other_layers_get_a_truncated_svd() -> None:
    state = several()
    made = compressor(state)
    compressed = made.compress(0.4)
    assert set(compressed.plan.decomposed) >= {"a", "b", "c", "d"}
    assert set(compressed.plan.nested) <= {"a.encoder", "e.encoder"}
    assert compressed.plan.nested
    rank = compressed.plan.factors["b"].rank
    W = state.network.b.weight.detach().flatten(1).double().numpy()
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    found = product(compressed.network.b).flatten(1).detach().numpy()
    np.testing.assert_allclose(found, (U[:, :rank] * S[:rank]) @ Vt[:rank], atol=1e-5)
    rows = {row["layer"]: row for row in layer_rows(made.original, compressed)}
    assert rows["b"]["relative_error"] == pytest.approx(np.square(S[rank:]).sum() / np.square(S).sum(), rel=1e-6)
    factors = sum(p.numel() for p in compressed.network.a.parameters())
    assert (rows["a"]["parameters"], rows["b"]["input_rank"]) == (factors, None)
    assert sum(int(row["parameters"]) for row in rows.values()) == compressed.count.parameters


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_each_allocation_is_best_in_what_it_makes_small(keep: float) -> None:
    found = {}
    for allocation in ALLOCATIONS:
        made = compressor(several(), allocation=allocation)
        limit = int(keep * made.original.parameters)
        chosen = made.method._choose(made.analysis, Budget("parameters", limit, made.original.parameters))
        found[allocation] = [float(own[i]) for own, i in zip(made.analysis.errors, chosen, strict=True)]
    assert min(found, key=lambda name: max(found[name])) == "minimax"
    assert sum(found["sum"]) <= 1.02 * min(map(sum, found.values()))


def test_ranks_are_multiples() -> None:
    compressed = compressor(several(), round_to=4).compress(0.5)
    assert all(own.rank % 4 == 0 for own in compressed.plan.factors.values())
    assert compressed.plan.nested


def test_rounding_goes_on_top_and_the_file_brings_it_back(tmp_path: Path) -> None:
    state = several()
    schemes = [{"name": "Tucker"}, {"name": "Quantize", "settings": {"dtype": "int8"}}]
    result = compress(state.network, "Compose", keep=0.5, example=state.example, settings={"schemes": schemes})
    assert result.plan.nested
    for name in result.plan.nested:
        assert named_dtypes(result.network)[f"{name}.encoder.weight"] == "int8"
    save_network(result, tmp_path / "n.pt")
    loaded = load_network(tmp_path / "n.pt", network=several().network)
    assert torch.equal(loaded(state.example), result.network(state.example))


def test_weights_go_behind_the_masks_of_factors() -> None:
    made = compressor(several())
    plan = made.plan(0.5)
    core = f"{next(iter(plan.nested))}.decoder.weight"
    mask = torch.rand(made.instantiate(plan).get_parameter(core).shape, generator=generator("mask")) < 0.5
    network = made.instantiate(replace(plan, masks={core: mask}))
    assert torch.equal(bake_masks(network).get_parameter(core), made.instantiate(plan).get_parameter(core) * mask)


def test_a_cascade_and_a_sliced_network_go_on() -> None:
    state = several()
    made = compressor(state)
    first = made.compress(0.6)
    middle = expand(first.network, state.network, first.plan, state.example)
    second = Compressor(made.method, middle, made.original, None, generator("again")).compress(0.4)
    assert second.count.parameters <= 0.4 * made.original.parameters
    assert second.plan.nested
    schemes = [{"name": "FilterPrune", "settings": {"density": 0.7}}, {"name": "Tucker"}]
    sliced = compress(state.network, "Compose", keep=0.3, example=state.example, settings={"schemes": schemes})
    assert sliced.plan.kept
    assert sliced.plan.nested
    assert sliced.network(state.example).shape == (1, 12)
