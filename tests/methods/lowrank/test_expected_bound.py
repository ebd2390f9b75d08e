"""The bound of randomised SVD's expected error: against means over many Gaussians, and its formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiment.methods.lowrank.randomised_svd import expected_bound, randomised_svd
from experiment.random_streams import generator


@pytest.mark.parametrize("power_iterations", [0, 1, 2])
def test_the_expected_error_is_within_its_bound(power_iterations: int) -> None:
    sigma = 1 / torch.arange(1, 61, dtype=torch.float64)
    U, V = (
        torch.linalg.qr(torch.randn(n, 60, generator=generator("bound", n), dtype=torch.float64))[0] for n in (80, 60)
    )
    A = (U * sigma) @ V.T
    for rank in (1, 10, 40):
        errors = []
        for seed in range(20):
            L, S, Rt = randomised_svd(
                A, rank, generator("bound", seed), oversampling=5, power_iterations=power_iterations
            )
            errors.append(float(np.linalg.norm((A - (L * S) @ Rt).numpy(), 2)))
        bound = expected_bound(sigma, rank, oversampling=5, power_iterations=power_iterations)
        assert float(sigma[rank]) <= np.mean(errors) <= bound
        tail = sigma[rank:].numpy() ** (2 * power_iterations + 1)
        inner = (1 + np.sqrt(rank / 4)) * tail[0] + np.e * np.sqrt(rank + 5) / 5 * np.sqrt((tail**2).sum())
        assert bound == pytest.approx(inner ** (1 / (2 * power_iterations + 1)) + float(sigma[rank]))


def test_there_is_no_bound_without_oversampling_or_singular_values() -> None:
    for rank, oversampling in ((5, 1), (0, 5), (56, 5)):
        with pytest.raises(ValueError, match="oversampling"):
            expected_bound(torch.ones(60), rank, oversampling=oversampling)
