"""Randomised SVD against numpy's, its promised errors, and the spectra made with it against exact ones."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.factored_layers import fold, unfold
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.lowrank.layer_options import find_options
from experiment.methods.lowrank.randomised_spectra import RandomisedSpectra
from experiment.methods.lowrank.randomised_svd import (
    leading_pair,
    norm_bound,
    operator_norm,
    range_finder,
    sketch,
)
from experiment.methods.lowrank.settings import SlicedSettings
from experiment.methods.lowrank.spectra import LayerSpectra, energy_errors, nuclear_errors, reference_errors
from experiment.methods.starting_state import start_of
from experiment.random_streams import generator, seeded

SPECTRA = {
    "slow": 1 / np.arange(1, 61) ** 0.5,
    "fast": 0.8 ** np.arange(60),
    "step": np.where(np.arange(60) < 8, 1.0, 0.01),
}


def matrix(sigma: np.ndarray, rows: int = 60, columns: int = 90) -> np.ndarray:
    """A matrix with these singular values and random vectors."""
    draw = np.random.default_rng(0)
    U, V = (np.linalg.qr(draw.normal(size=(n, len(sigma))))[0] for n in (rows, columns))
    return (U * sigma) @ V.T


def basis_errors(A: np.ndarray, rank: int, p: int, q: int, seeds: int = 30) -> tuple[float, float]:
    """E ||A - Q Q^T A|| in spectral and Frobenius norm, averaged over seeds."""
    found = []
    for seed in range(seeds):
        Q = range_finder(torch.from_numpy(A)[None], rank + p, q, generator("test_randomised", seed))[0].numpy()
        rest = A - Q @ (Q.T @ A)
        found.append((np.linalg.norm(rest, 2), np.linalg.norm(rest)))
    spectral, frobenius = np.mean(found, axis=0)
    return float(spectral), float(frobenius)


@pytest.mark.parametrize("decay", SPECTRA)
@pytest.mark.parametrize(("rank", "p"), [(8, 10), (20, 5), (4, 2)])
def test_mean_errors_are_within_the_theorems(decay: str, rank: int, p: int) -> None:
    sigma = SPECTRA[decay]
    A, tail = matrix(sigma), math.sqrt((sigma[rank:] ** 2).sum())
    spectral, frobenius = basis_errors(A, rank, p, 0)
    least = math.sqrt((sigma[rank + p :] ** 2).sum())
    assert least <= frobenius <= math.sqrt(1 + rank / (p - 1)) * tail
    factor, more = 1 + math.sqrt(rank / (p - 1)), math.e * math.sqrt(rank + p) / p
    assert spectral <= factor * sigma[rank] + more * tail
    for q in (1, 2):
        powered = sigma ** (2 * q + 1)
        bound = factor * powered[rank] + more * math.sqrt((powered[rank:] ** 2).sum())
        sharper = basis_errors(A, rank, p, q)[0]
        assert sharper <= bound ** (1 / (2 * q + 1))
        assert sharper <= spectral + 1e-12


@pytest.mark.parametrize("q", [0, 2])
def test_basis_is_orthonormal_even_where_nothing_is_left_to_find(q: int) -> None:
    A = torch.from_numpy(matrix(np.array([1.0, 1e-3])))[None]
    Q = range_finder(A, 12, q, generator("test_randomised"))[0]
    torch.testing.assert_close(Q.T @ Q, torch.eye(12, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(Q @ (Q.T @ A[0]), A[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [0, 61])
def test_basis_of_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 60"):
        range_finder(torch.zeros(1, 60, 90), size, 0, generator("test_randomised"))


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_with_all_columns_it_is_the_exact_svd(shape: tuple[int, int]) -> None:
    A = np.stack([matrix(SPECTRA["slow"], *shape), matrix(SPECTRA["fast"], *shape)])
    U, S, Vt = sketch(torch.from_numpy(A), 60, 2, generator("test_randomised")).svd(60, 55)
    L, sigma, Rt = np.linalg.svd(A, full_matrices=False)
    assert S.numpy() == pytest.approx(sigma[:, :55], abs=1e-12)
    expected = (L[:, :, :55] * sigma[:, None, :55]) @ Rt[:, :55]
    assert ((U * S[:, None]) @ Vt).numpy() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("decay", SPECTRA)
def test_truncated_svd_is_near_the_best_one_and_never_above_it(decay: str) -> None:
    A, sigma = matrix(SPECTRA[decay]), SPECTRA[decay]
    U, S, Vt = (t[0].numpy() for t in sketch(torch.from_numpy(A)[None], 18, 2, generator("test_randomised")).svd(18, 8))
    np.testing.assert_allclose(U.T @ U, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(8), atol=1e-12)
    assert (sigma[:8] + 1e-12 >= S).all()
    np.testing.assert_allclose(S, sigma[:8], rtol=0.02)
    error = np.linalg.norm(A - (U * S) @ Vt)
    best = math.sqrt((sigma[8:] ** 2).sum())
    assert best - 1e-12 <= error <= 1.01 * best
    assert error**2 == pytest.approx((A**2).sum() - (S**2).sum())  # why the energy beyond is known exactly


def test_same_seed_gives_the_same_and_another_one_another() -> None:
    A = torch.from_numpy(matrix(SPECTRA["slow"]))[None]
    one, same, other = (sketch(A, 15, 2, generator("test_randomised", seed)).Q for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("q", [0, 2])
def test_a_sketch_holds_every_smaller_one(q: int) -> None:
    """Its first columns are what the first columns of its Gaussian alone would give, and so are their triplets."""
    A = torch.from_numpy(matrix(SPECTRA["slow"]))[None]
    whole = sketch(A, 32, q, generator("test_randomised"))
    Omega = torch.randn(1, A.shape[2], 32, generator=generator("test_randomised"), dtype=A.dtype)[..., :20].numpy()
    Y = A.numpy() @ Omega
    for _ in range(q):
        Y = A.numpy() @ np.linalg.qr(A.numpy().transpose(0, 2, 1) @ np.linalg.qr(Y)[0])[0]
    Q = np.linalg.qr(Y)[0]
    U, S, Vt = np.linalg.svd(Q.transpose(0, 2, 1) @ A.numpy(), full_matrices=False)
    found = whole.svd(20, 12)
    np.testing.assert_allclose(found.S.numpy(), S[:, :12], rtol=1e-9)
    expected = (Q @ U[..., :12] * S[:, None, :12]) @ Vt[:, :12]
    np.testing.assert_allclose((found.U * found.S[:, None, :] @ found.Vt).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("decay", SPECTRA)
def test_bound_after_the_fact_holds(decay: str) -> None:
    """With ten probes it fails once in 10^10; with one, by no more than a tenth of the time."""
    A = torch.from_numpy(matrix(SPECTRA[decay]))
    norms, sizes = np.linalg.norm(A.numpy(), 2), np.linalg.norm(A.numpy())
    bounds = np.array([norm_bound(A, generator("test_randomised", seed)) for seed in range(50)])
    assert (bounds >= norms).all()
    assert bounds.mean() == pytest.approx(10 * math.sqrt(2 / math.pi) * sizes, rel=1.0)
    single = np.array([norm_bound(A, generator("test_randomised", seed), probes=1) for seed in range(200)])
    assert (single < norms).mean() <= 0.1


@pytest.mark.parametrize("sigma", [np.ones(200), np.linspace(1, 0.5, 200), 0.9 ** np.arange(200), np.zeros(200)])
@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (200, 200)])
def test_operator_norm(sigma: np.ndarray, shape: tuple[int, int]) -> None:
    A = torch.from_numpy(matrix(sigma, *shape))
    norm, vector = leading_pair(A, generator("test_randomised"))
    assert norm <= sigma[0] + 1e-12
    assert norm == pytest.approx(sigma[0], rel=2e-3)
    assert operator_norm(A, generator("test_randomised")) == norm
    assert float(vector.norm()) == pytest.approx(1)
    assert float((vector @ A).norm()) == pytest.approx(norm, abs=1e-12)


def test_operator_norm_of_a_noisy_matrix_has_no_gap_to_rely_on() -> None:
    A = torch.randn(400, 600, generator=generator("test_randomised"), dtype=torch.float64)
    assert operator_norm(A, generator("test_randomised", 1)) == pytest.approx(np.linalg.norm(A.numpy(), 2), rel=2e-3)


def weight_of(*shape: int) -> Tensor:
    """Rows of falling size: its singular values fall by about a tenth each."""
    stream = generator("test_randomised", "weight")
    return torch.randn(shape, generator=stream) * (0.9 ** torch.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1))


CASES = [(1, 0), (2, 0), (4, 0), (2, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize(("groups", "folding"), CASES)
def test_spectra_agree_with_exact_ones_up_to_their_largest_rank(groups: int, folding: int) -> None:
    weight = weight_of(80, 24, 3, 3)
    exact, sketch = LayerSpectra(weight), RandomisedSpectra(weight, 12, seed=1)
    assert sketch.full_rank(groups, folding) == exact.full_rank(groups, folding) > 12
    assert sketch.top_rank(groups, folding) == 12
    sketch.prepare([groups], folding)
    assert sketch.values(groups, folding) == pytest.approx(exact.values(groups, folding)[:, :13], rel=0.02)
    assert sketch.norm(folding) == pytest.approx(exact.norm(folding), rel=1e-6)
    for curve in (reference_errors, energy_errors):
        found, expected = curve(sketch, groups, folding), curve(exact, groups, folding)[:12]
        assert found == pytest.approx(expected, rel=0.02)
        assert (np.diff(found) <= 0).all()
        assert found[-1] > 0
    for rank in (1, 5, 12):
        assert sketch.exact_error(rank, groups, folding) == pytest.approx(
            exact.exact_error(rank, groups, folding), rel=0.03
        )


@pytest.mark.parametrize(("groups", "folding"), CASES)
def test_what_spectra_say_of_their_factors_is_true_of_them(groups: int, folding: int) -> None:
    weight = weight_of(80, 24, 3, 3)
    sketch = RandomisedSpectra(weight, 12, seed=1)
    whole = fold(weight.double(), 1, folding)[0].numpy()
    errors = {}
    for rank in (1, 5, 12):
        U, V = sketch.factors(rank, groups, folding)
        assert (U.shape[2], V.shape[1]) == (rank, rank)
        values = sketch.values(groups, folding)[:, :rank]
        assert (U.mT @ U).diagonal(dim1=1, dim2=2).numpy() == pytest.approx(values)  # balanced
        assert (V @ V.mT).diagonal(dim1=1, dim2=2).numpy() == pytest.approx(values)
        rest = whole - fold(unfold(U @ V, weight.shape, folding), 1, folding)[0].numpy()
        errors[rank] = np.linalg.norm(rest, 2) / np.linalg.norm(whole, 2)
        energy = (rest**2).sum() / (whole**2).sum()
        assert sketch.exact_error(rank, groups, folding) == pytest.approx(errors[rank], rel=1e-3)
        assert energy_errors(sketch, groups, folding)[rank - 1] == pytest.approx(energy, rel=1e-9)
        assert sketch.error_bound(rank, groups, folding) >= errors[rank]
    for rank in errors:
        bounds = sketch.exact_bounds(rank, groups, folding)
        assert all(bounds[other - 1] <= error * (1 + 1e-9) for other, error in errors.items())


def test_narrow_slices_are_exact_and_seeds_do_not_depend_on_order() -> None:
    weight = weight_of(80, 24, 3, 3)
    exact, sketch = LayerSpectra(weight), RandomisedSpectra(weight, 30, seed=1)
    sketch.prepare([8, 24])
    exact.prepare([8, 24])  # numbers of groups that are asked for together share Gram matrices, down to rounding
    for groups in (8, 24):  # 27 and 9 columns
        assert sketch.values(groups) == pytest.approx(exact.values(groups), rel=1e-9)  # to the last few digits
        assert torch.equal(sketch.factors(3, groups)[0], exact.factors(3, groups)[0])
        assert sketch.unseen_energy(groups) == 0
        assert sketch.exact_error(3, groups) == pytest.approx(exact.exact_error(3, groups), rel=1e-3)
    late = RandomisedSpectra(weight, 30, seed=1)
    late.factors(2, 2)
    assert torch.equal(late.factors(5, 1)[0], sketch.factors(5, 1)[0])
    assert not torch.equal(RandomisedSpectra(weight, 30, seed=2).factors(5, 1)[0], late.factors(5, 1)[0])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_weights(scale: float) -> None:
    weight, plain = weight_of(80, 90) * scale, RandomisedSpectra(weight_of(80, 90), 12, seed=1)
    sketch = RandomisedSpectra(weight, 12, seed=1)
    assert sketch.values() == pytest.approx(plain.values() * scale, rel=1e-5)
    assert sketch.exact_error(3) == pytest.approx(plain.exact_error(3) if scale else 0, rel=1e-4)
    assert energy_errors(sketch) == pytest.approx(energy_errors(plain) if scale else np.zeros(12), rel=1e-4)
    assert math.isfinite(sketch.error_bound(3))
    assert all(torch.isfinite(factor).all() for factor in sketch.factors(3))


def test_nuclear_norm_is_refused() -> None:
    with pytest.raises(CompressionError, match="all 80 singular values"):
        nuclear_errors(RandomisedSpectra(weight_of(80, 90), 12, seed=1))
    assert not hasattr(SlicedSettings(), "randomised_above")


def net() -> State:
    """Two wide layers and a narrow one."""
    with seeded("test_randomised"):
        network = nn.Sequential(nn.Linear(96, 72), nn.ReLU(), nn.Linear(72, 64), nn.ReLU(), nn.Linear(64, 10))
        with torch.no_grad():
            for i in (0, 2, 4):
                network[i].weight.copy_(weight_of(*network[i].weight.shape))
    return State(network.eval(), torch.ones(1, 96))


def compressor(label: str, state: State, **settings: object) -> Compressor:
    entry = METHODS[label]
    method = make_method(entry, configure(entry, settings).settings)
    return Compressor(method, state, count(state.network, state.example), None, generator("test_randomised"))


def test_ranks_end_where_singular_values_do_and_the_layer_itself_comes_last() -> None:
    start = start_of(net())
    options = find_options(start, start.layers["0"], [(1, 0), (2, 0)], 1, 20)
    assert [int(options.ranks[options.groups == k].max()) for k in (1, 2)] == [20, 20]
    assert (options.ranks[-1], options.groups[-1]) == (0, 1)
    assert options.costs["parameters"][-1] == 96 * 72 + 72


LABELS = [label for label, entry in METHODS.items() if hasattr(entry.settings, "randomised_above")]


ONE_EACH = ["SVD", "ALDS+", *{METHODS[label].target: label for label in reversed(LABELS)}.values()]  # a target


def test_methods_that_take_the_setting() -> None:
    assert {"SVD", "SVD-Energy", "SVD-Error", "L-Rank", "ALDS", "ALDS+"} <= set(LABELS)


@pytest.mark.parametrize("label", ONE_EACH)
def test_methods_find_what_they_find_with_exact_spectra_where_ranks_are_low(label: str) -> None:
    state = net()
    exact, sketched = compressor(label, state), compressor(label, state, randomised_above=24)
    for keep in (0.35, 0.25):
        one, other = exact.compress(keep), sketched.compress(keep)
        assert all(factors.rank <= 24 for factors in one.plan.factors.values())  # else there is nothing to compare
        assert one.plan.factors == other.plan.factors
        for name, detail in one.plan.details.items():
            for key in ("relative_error", "relative_error_exact"):
                assert other.plan.details[name][key] == pytest.approx(detail[key], rel=0.02, abs=1e-6)
        torch.testing.assert_close(other.network(state.example), one.network(state.example), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("label", ONE_EACH)
def test_high_budgets_leave_layers_whole_rather_than_at_unknown_ranks(label: str) -> None:
    state = net()
    made = compressor(label, state, randomised_above=8)
    sizes = []
    for keep in (0.95, 0.7, 0.5, 0.3):
        compressed = made.compress(keep)
        assert all(factors.rank <= 8 for name, factors in compressed.plan.factors.items() if name != "4")
        assert compressed.count.parameters == compressed.plan.parameters <= keep * made.original.parameters
        sizes.append(compressed.count.parameters)
    assert sizes == sorted(sizes, reverse=True)


def test_alds_settles_exact_errors_with_sketches() -> None:
    state = net()
    exact, sketched = (compressor("ALDS", state, error="exact", **more) for more in ({}, {"randomised_above": 24}))
    for keep in (0.35, 0.25):
        errors = [
            max(float(str(d["relative_error"])) for d in made.compress(keep).plan.details.values())
            for made in (exact, sketched)
        ]
        assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_other_weights_of_the_same_plan_are_sketched_alike() -> None:
    """Rewinding: twice the weights give twice the products."""
    state = net()
    made = compressor("SVD", state, randomised_above=24)
    plan = made.compress(0.3).plan
    other = net()
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(
        made.instantiate(plan, other)[0](state.example), 2 * made.instantiate(plan)[0](state.example)
    )
