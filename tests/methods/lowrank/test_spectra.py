"""Singular values, factors and errors of sliced weights, against numpy's SVD of the slices written out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from experiment.layers.factored_layers import FOLDINGS, fold, unfold
from experiment.methods.lowrank.spectra import LayerSpectra, energy_errors, reference_errors
from experiment.random_streams import generator

SHAPES = {"conv": (8, 12, 3, 3), "narrow conv": (20, 6, 3, 2), "linear": (10, 12), "one filter": (1, 12, 3, 3)}


def weight_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Rows and channels of very different size, so that spectra decay and differ between slices."""
    stream = generator("test_spectra", seed)
    decay = 0.7 ** torch.arange(shape[0])[:, None] * torch.linspace(1, 3, shape[1])
    return torch.randn(shape, generator=stream) * decay.reshape(*shape[:2], *[1] * (len(shape) - 2))


def foldings(shape: tuple[int, ...]) -> list[int]:
    return list(FOLDINGS) if len(shape) == 4 else [0]


def slices(weight: Tensor, groups: int, folding: int) -> list[np.ndarray]:
    """Input channels first cut, then folded one part at a time."""
    return [fold(part, 1, folding)[0].double().numpy() for part in weight.chunk(groups, dim=1)]


CASES = [(name, folding) for name, shape in SHAPES.items() for folding in foldings(shape)]


@pytest.mark.parametrize(("name", "folding"), CASES)
def test_values_equal_numpys(name: str, folding: int) -> None:
    weight = weight_of(SHAPES[name])
    together, alone = LayerSpectra(weight), LayerSpectra(weight)
    all_groups = [g for g in (1, 2, 3, 4, 6, 12) if weight.shape[1] % g == 0]
    together.prepare(all_groups, folding)  # Gram matrices of few groups are sums of those of many
    for groups in all_groups:
        expected = np.stack([np.linalg.svd(A, compute_uv=False) for A in slices(weight, groups, folding)])
        for spectra in (together, alone):
            assert spectra.values(groups, folding) == pytest.approx(expected, rel=1e-6, abs=1e-7 * expected.max())


@pytest.mark.parametrize(("name", "folding"), CASES)
def test_factors_are_balanced_truncated_svds(name: str, folding: int) -> None:
    weight = weight_of(SHAPES[name])
    spectra = LayerSpectra(weight)
    for groups in (1, 3, 6):
        for rank in (1, 2, spectra.values(groups, folding).shape[1]):
            U, V = spectra.factors(rank, groups, folding)
            for g, A in enumerate(slices(weight, groups, folding)):
                L, S, Rt = np.linalg.svd(A, full_matrices=False)
                expected = (L[:, :rank] * S[:rank]) @ Rt[:rank]
                assert (U[g] @ V[g]).numpy() == pytest.approx(expected, abs=1e-6 * S[0])
                assert (U[g].T @ U[g]).diagonal().numpy() == pytest.approx(S[:rank], rel=1e-5, abs=1e-6 * S[0])
                assert (V[g] @ V[g].T).diagonal().numpy() == pytest.approx(S[:rank], rel=1e-5, abs=1e-6 * S[0])


def test_errors_of_one_group_are_those_of_eckart_and_young() -> None:
    weight = weight_of(SHAPES["conv"])
    spectra = LayerSpectra(weight)
    A = fold(weight.double())[0].numpy()
    sigma = np.linalg.svd(A, compute_uv=False)
    for rank in range(1, 9):
        U, V = spectra.factors(rank)
        residual = A - (U[0] @ V[0]).numpy()
        error = np.linalg.norm(residual, 2) / np.linalg.norm(A, 2)
        assert reference_errors(spectra, 1)[rank - 1] == pytest.approx(error, abs=1e-7)
        assert spectra.exact_error(rank) == pytest.approx(error, abs=1e-7)
        energy = np.linalg.norm(residual) ** 2 / np.linalg.norm(A) ** 2
        assert energy_errors(spectra)[rank - 1] == pytest.approx(energy, abs=1e-7)
        assert error == pytest.approx((*sigma, 0)[rank] / sigma[0], abs=1e-7)


@pytest.mark.parametrize(("name", "folding"), CASES)
def test_exact_error_lies_between_the_bounds(name: str, folding: int) -> None:
    weight = weight_of(SHAPES[name])
    spectra = LayerSpectra(weight)
    whole = fold(weight.double(), 1, folding)[0].numpy()
    for groups in (2, 3, 6):
        reference = reference_errors(spectra, groups, folding)
        for rank in range(1, len(reference) + 1):
            U, V = spectra.factors(rank, groups, folding)
            approximation = fold(unfold(U @ V, weight.shape, folding), 1, folding)[0].numpy()
            error = np.linalg.norm(whole - approximation, 2) / np.linalg.norm(whole, 2)
            assert spectra.exact_error(rank, groups, folding) == pytest.approx(error, abs=1e-6)
            assert reference[rank - 1] <= error + 1e-6
            assert error <= groups**0.5 * reference[rank - 1] + 1e-6


def test_one_exact_error_bounds_those_of_other_ranks() -> None:
    spectra = LayerSpectra(weight_of(SHAPES["conv"]))
    for groups in (2, 4):
        exact = np.array([spectra.exact_error(rank, groups) for rank in range(1, 9)])
        for rank in range(1, 9):
            bounds = spectra.exact_bounds(rank, groups)
            assert (bounds <= exact + 1e-9).all()
            assert bounds[rank - 1] == pytest.approx(exact[rank - 1], abs=1e-12)
            assert (np.diff(bounds) <= 0).all()


def test_slices_are_cut_before_they_are_folded() -> None:
    """Columns of folding 1 are kernel-major: cutting the folded matrix would mix other channels (other spectra)."""
    weight = weight_of(SHAPES["conv"])
    cut_folded = np.split(fold(weight.double(), 1, 1)[0].numpy(), 2, axis=1)
    wrong = np.stack([np.linalg.svd(A, compute_uv=False) for A in cut_folded])
    assert not np.allclose(LayerSpectra(weight).values(2, 1), wrong, rtol=1e-3)


def test_zero_weight_has_no_error() -> None:
    spectra = LayerSpectra(torch.zeros(4, 6, 3, 3))
    assert not reference_errors(spectra, 2).any()
    assert not energy_errors(spectra).any()
    assert spectra.exact_error(1, 2) == 0
    assert not torch.cat([factor.flatten() for factor in spectra.factors(2, 2)]).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    weight = weight_of(SHAPES["conv"])
    plain, scaled = LayerSpectra(weight), LayerSpectra(weight * scale)
    assert scaled.values(3) == pytest.approx(plain.values(3) * scale, rel=1e-5)
    assert scaled.exact_error(2, 3) == pytest.approx(plain.exact_error(2, 3), rel=1e-5)
    U, V = scaled.factors(2, 3)
    expected = torch.matmul(*plain.factors(2, 3))
    torch.testing.assert_close(U @ V / scale, expected, rtol=1e-4, atol=1e-5)


def test_exactly_low_rank_weight_is_reproduced() -> None:
    stream = generator("test_spectra", "low rank")
    weight = torch.randn(8, 2, generator=stream) @ torch.randn(2, 12, generator=stream)
    spectra = LayerSpectra(weight)
    U, V = spectra.factors(2)
    torch.testing.assert_close((U @ V)[0].float(), weight, rtol=1e-5, atol=1e-6)
    assert spectra.exact_error(2) < 1e-6
