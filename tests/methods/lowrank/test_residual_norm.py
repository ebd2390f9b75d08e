"""The largest direction of what truncation leaves, against numpy's norms of residuals written out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from experiment.layers.factored_layers import fold
from experiment.methods.lowrank.residual_norm import DENSE, first_eigenvector
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.random_streams import generator


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("test_residual"), dtype=torch.float64)


def semidefinite(values: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix with these eigenvalues, and its eigenvectors."""
    Q = torch.linalg.qr(normal(len(values), len(values)))[0]
    return (Q * values) @ Q.T, Q


@pytest.mark.parametrize("size", [3, DENSE + 44])
def test_first_eigenvector(size: int) -> None:
    M, Q = semidefinite(torch.linspace(0, 1, size, dtype=torch.float64).pow(3))
    v = first_eigenvector(M)
    assert float(v.norm()) == pytest.approx(1, abs=1e-12)
    assert abs(float(v @ Q[:, -1])) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(DENSE + 1),
        torch.ones(DENSE + 1),  # the first Krylov space is already invariant
        torch.arange(DENSE + 1).ge(DENSE - 4).float(),  # five equal ones
        1 - 1e-6 * torch.linspace(0, 1, DENSE + 1) ** 2,  # close together: more steps than are worth taking
    ],
)
def test_largest_eigenvalue_without_a_gap(values: Tensor) -> None:
    M, _ = semidefinite(values.double())
    v = first_eigenvector(M)
    assert float(v @ M @ v) == pytest.approx(float(values.max()), abs=1e-8)


@pytest.mark.parametrize(
    ("shape", "groups", "folding"),
    [
        ((300, 40, 3, 3), 4, 0),  # slices of 90 columns, 360 in all: wider than high together
        ((280, 64, 3, 3), 2, 0),  # 288 columns: each wider than high
        ((400, 300), 3, 0),  # higher than wide together
        ((100, 320, 3, 1), 2, 2),
        ((64, 280, 3, 3), 4, 3),
    ],
)
def test_norm_of_large_residuals(shape: tuple[int, ...], groups: int, folding: int) -> None:
    """Each way to the norm: kept or discarded parts, rows or columns, and more of them than are solved densely."""
    weight = normal(*shape).float() * (0.98 ** torch.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    spectra = LayerSpectra(weight)
    slices = [fold(part.double(), 1, folding)[0].numpy() for part in weight.chunk(groups, dim=1)]
    whole = np.linalg.norm(np.hstack(slices), 2)
    full = spectra.full_rank(groups, folding)
    assert max(fold(weight, groups, folding).shape[1:]) * groups > DENSE
    for rank in (1, full // 3, full // 2 + 1, full - 1, full):
        left = []
        for A in slices:
            U, S, Vt = np.linalg.svd(A, full_matrices=False)
            left.append(A - (U[:, :rank] * S[:rank]) @ Vt[:rank])
        expected = np.linalg.norm(np.hstack(left), 2) / whole
        assert spectra.exact_error(rank, groups, folding) == pytest.approx(expected, abs=1e-8)
        bounds = spectra.exact_bounds(rank, groups, folding)
        others = [spectra.exact_error(other, groups, folding) for other in (1, full // 2, full)]
        assert all(bounds[other - 1] <= error + 1e-9 for other, error in zip((1, full // 2, full), others, strict=True))
