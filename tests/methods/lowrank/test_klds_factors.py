"""Factors in the metric of outputs and inputs: full rank, tails, optimality, and both ways to compute them."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.layers.factored_layers import fold
from experiment.layers.plan import Factors
from experiment.methods.data import responses
from experiment.methods.data.fisher import DAMPING, LayerMoments, gather
from experiment.methods.lowrank import klds_factors as module
from experiment.methods.lowrank.klds_factors import LayerDirections
from experiment.random_streams import generator, seeded

CONV, LINEAR = (6, 4, 3, 3), (10, 6)
CASES = [
    *((CONV, groups, folding) for groups, folding in itertools.product((1, 2, 4), range(4))),
    *((LINEAR, groups, 0) for groups in (1, 2, 3)),
]


def randn(*shape: int, name: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("test_directions", name), dtype=torch.float64)


def weight_of(shape: tuple[int, ...]) -> Tensor:
    return randn(*shape, name="weight").float()


def spread(side: int, name: str, rank: int | None = None) -> Tensor:
    """Moments with eigenvalues of very different size: (side, side)."""
    X = torch.diag(torch.logspace(0, -1.5, side, dtype=torch.float64)) @ randn(side, rank or 2 * side, name=name)
    return X @ X.T


def case(
    shape: tuple[int, ...], groups: int, folding: int, rank: int | None = None
) -> tuple[LayerDirections, Tensor, Tensor, Tensor]:
    """Directions, with the damped G of rows (R, R), the C of all slices (G, N, N) and the slices (G, R, N)."""
    weight = weight_of(shape)
    W = fold(weight.double(), groups, folding)
    C = torch.stack([spread(W.shape[2], f"C{i}", rank) for i in range(groups)])
    G = spread(shape[0], "G")
    gram = W @ C @ W.mT if W.shape[1] <= W.shape[2] else C
    places = 50
    found = LayerDirections(
        weight, LayerMoments(G[None], {(groups, folding): gram * places}, {(groups, folding): places})
    )
    damped = G + DAMPING * G.diagonal().mean() * torch.eye(len(G))
    return found, torch.kron(damped, torch.eye(W.shape[1] // len(G))), C, W


def lost(G: Tensor, C: Tensor, E: Tensor) -> float:
    return float((G @ E @ C @ E.mT).diagonal(dim1=1, dim2=2).sum())


@pytest.mark.parametrize(("shape", "groups", "folding"), CASES)
def test_full_rank_is_the_weight(shape: tuple[int, ...], groups: int, folding: int) -> None:
    for rank in (None, 2):  # with 2, the data have two directions only
        found, _, _, W = case(shape, groups, folding, rank)
        factors = Factors(min(W.shape[1:]), groups, folding)
        U, V = found.factors(factors)
        torch.testing.assert_close(U @ V, W, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(U.norm(dim=1), V.norm(dim=2), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.product(factors).float(), weight_of(shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("shape", "groups", "folding"), CASES)
def test_tail_is_what_the_factors_lose(shape: tuple[int, ...], groups: int, folding: int) -> None:
    found, G, C, W = case(shape, groups, folding)
    tails = found.tails[groups, folding]
    assert len(tails) == min(W.shape[1:])
    for rank in range(1, len(tails) + 1):
        U, V = found.factors(Factors(rank, groups, folding))
        np.testing.assert_allclose(lost(G, C, W - U @ V), tails[rank - 1], rtol=1e-3, atol=1e-4 * found.total)
    assert (np.diff(tails) <= 0).all()
    assert tails[-1] == 0
    assert found.total == pytest.approx(lost(G, C, W), rel=1e-3)


@pytest.mark.parametrize(("shape", "groups", "folding"), CASES)
def test_tail_is_that_of_the_singular_values(shape: tuple[int, ...], groups: int, folding: int) -> None:
    """G^1/2 W_i C_i^1/2 by Cholesky factors in their place, which have the same singular values."""
    found, G, C, W = case(shape, groups, folding)
    weighted = torch.linalg.cholesky(G).T @ W @ torch.linalg.cholesky(C)
    squares = np.linalg.svd(weighted.numpy(), compute_uv=False) ** 2
    expected = np.append(np.cumsum(squares.sum(0)[::-1])[::-1][1:], 0)
    np.testing.assert_allclose(found.tails[groups, folding], expected, rtol=1e-3, atol=1e-5 * found.total)


@pytest.mark.parametrize(("shape", "groups", "folding"), [(CONV, 1, 0), (CONV, 2, 1), (LINEAR, 1, 0), (LINEAR, 3, 0)])
def test_no_other_factors_lose_less(shape: tuple[int, ...], groups: int, folding: int) -> None:
    found, G, C, W = case(shape, groups, folding)
    rank = W.shape[2] // 2 if W.shape[2] < 4 else 2
    U, V = found.factors(Factors(rank, groups, folding))
    least = lost(G, C, W - U @ V)
    for step, i in itertools.product((1e-3, 1e-1, 1.0), range(50)):
        dU, dV = randn(*U.shape, name=f"U{i}"), randn(*V.shape, name=f"V{i}")
        assert lost(G, C, W - (U + step * dU) @ (V + step * dV)) >= least * (1 - 1e-6)
    for i in range(20):  # any encoder with the decoder that suits it best
        V = randn(groups, rank, W.shape[2], name=f"encoder{i}")
        best = W @ C @ V.mT @ torch.linalg.inv(V @ C @ V.mT)
        assert lost(G, C, W - best @ V) >= least * (1 - 1e-6)


@pytest.mark.parametrize("folding", range(4))
@pytest.mark.parametrize("rank", [None, 3])
def test_both_ways_find_the_same(folding: int, rank: int | None) -> None:
    W = torch.linalg.cholesky(spread(8, "G")).T @ randn(2, 8, 8, name=f"W{folding}")
    C = torch.stack([spread(8, f"C{folding}{i}", rank) for i in range(2)])
    W = torch.cat([W, torch.zeros(2, 1, 8).double()], 1)  # a row of zeros makes it a tall one
    squares, vectors = module._from_responses(W, W @ C @ W.mT)
    others, right = module._from_inputs(W, C)
    squares, vectors, left = squares.flip(-1), vectors.flip(-1), module._left(W, right.flip(-1))
    top = 8 if rank is None else rank
    torch.testing.assert_close(squares[:, :top], others.flip(-1)[:, :top], rtol=1e-4, atol=1e-4)
    for count in range(1, top + 1):
        u, v = vectors[:, :, :count], left[:, :, :count]
        torch.testing.assert_close(u @ u.mT @ W, v @ v.mT @ W, rtol=1e-2, atol=1e-2)
    for basis in (vectors, left):  # orthonormal, where the data have fewer directions too
        eye = torch.eye(basis.shape[2]).double().expand(2, -1, -1)
        torch.testing.assert_close(basis.mT @ basis, eye, rtol=0, atol=1e-6)


def test_tall_weights_are_decomposed_in_their_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hardly any damping, which is relative to G's mean eigenvalue, all features give the same factors."""
    monkeypatch.setattr(module, "DAMPING", 1e-9)
    with seeded("test_directions", "tall"):
        network = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 40)).double()
    x, found = randn(100, 6, name="x"), []
    for many in (10**6, 10):
        monkeypatch.setattr(responses, "MANY_FEATURES", many)
        moments = gather(network, {"0": [(1, 0), (3, 0)]}, x, generator("labels"))["0"]
        found.append(LayerDirections(network[0].weight, moments, {(1, 0): 4}))
        found[-1].forget()
    whole, spanned = found
    assert moments.gradient.shape == (1, 6, 6)
    other = randn(20, 6, name="other")
    for slicing, tails in whole.tails.items():
        np.testing.assert_allclose(spanned.tails[slicing], tails, rtol=1e-3, atol=1e-6 * whole.total)
        factors = Factors(2, *slicing)
        torch.testing.assert_close(spanned.product(factors), whole.product(factors), rtol=1e-3, atol=1e-4)
        assert torch.equal(spanned.factors(factors, other)[0], spanned.factors(factors)[0])


def test_dead_layers_are_decomposed_all_the_same() -> None:
    """No gradient, no input, no weight: the factors are those of what is left to go by, and finite."""
    weight, places = weight_of(LINEAR), {(1, 0): 5}
    W = weight.double().numpy()
    found = LayerDirections(
        weight, LayerMoments(torch.zeros(1, 10, 10), {(1, 0): torch.zeros(1, 6, 6).double()}, places)
    )
    U, V = found.factors(Factors(2))
    left, values, right = np.linalg.svd(W, full_matrices=False)
    np.testing.assert_allclose((U @ V)[0], (left[:, :2] * values[:2]) @ right[:2], atol=1e-5)

    found = LayerDirections(weight * 0, LayerMoments(spread(10, "G")[None], {(1, 0): spread(6, "C")[None]}, places))
    assert found.total == 0
    assert not found.product(Factors(2)).any()
    assert all(torch.isfinite(factor).all() for factor in found.factors(Factors(2)))


def test_other_weights_are_encoded_by_the_same_decoders() -> None:
    found, *_ = case(CONV, 2, 0)
    other, factors = randn(*CONV, name="other").float(), Factors(3, 2, 0)
    U, V = found.factors(factors)
    same, encoded = found.factors(factors, other)
    assert torch.equal(same, U)
    twice = found.factors(factors, 2 * weight_of(CONV))
    torch.testing.assert_close(twice[1], 2 * V)
    full = found.factors(Factors(6, 2, 0), other)
    torch.testing.assert_close(full[0] @ full[1], fold(other.double(), 2, 0), rtol=1e-3, atol=1e-4)
    assert encoded.shape == V.shape


def test_components_that_were_nothing_bear_other_weights() -> None:
    """Of a weight of rank 1 all other components are of length zero; another weight has some there."""
    weight = torch.outer(torch.arange(1.0, 11), torch.arange(1.0, 7))
    found = LayerDirections(weight, LayerMoments(spread(10, "G")[None], {(1, 0): spread(6, "C")[None]}, {(1, 0): 1}))
    U, V = found.factors(Factors(6), weight_of(LINEAR))
    assert all(torch.isfinite(factor.float()).all() for factor in (U, V))
    assert U.abs().max() < 1e6
    assert V.abs().max() < 1e9
