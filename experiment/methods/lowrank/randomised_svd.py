"""Randomised linear algebra: a matrix's range, truncated SVD and norm from a few products with Gaussian vectors.

All of it works in the precision of its input. Hand it float64: in float32, singular values below about 1e-7 of the
largest one drown in rounding, as do, without the QR between multiplications, those below (1e-7)^(1 / (2q + 1)) of it.
Gaussians are drawn on the CPU, so that all devices see the same ones.

Shape suffixes: G = a batch of matrices, R = rows, N = columns, L = sketch (columns of the basis), J = rank.

Source: Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

OVERSAMPLING = 10
POWER_ITERATIONS = 2
PROBES = 10


class TruncatedSVD(NamedTuple):
    """A ~ U diag(S) Vt: U (G, R, J) and Vt (G, J, N) with orthonormal columns and rows, S (G, J) falling."""

    U: Tensor
    S: Tensor
    Vt: Tensor


class Sketch(NamedTuple):
    """A ~ Q B of L columns, B^T = P T, from which every smaller sketch follows: Q's and P's first columns are its own.

    Q (G, R, L) and P (G, N, L) with orthonormal columns, T (G, L, L) upper triangular.
    """

    Q: Tensor
    P: Tensor
    T: Tensor

    def svd(self, size: int, rank: int) -> TruncatedSVD:
        """As `randomised_svd` finds it with `size` columns: the SVD of B's first rows, by that of a small triangle."""
        U, S, Vt = torch.linalg.svd(self.T[..., :size, :size].mT)
        left, right = self.Q[..., :size] @ U[..., :rank], self.P[..., :size] @ Vt[..., :rank, :].mT
        return TruncatedSVD(left, S[..., :rank], right.mT)


def sketch(A_GRN: Tensor, size: int, power_iterations: int, generator: torch.Generator) -> Sketch:
    """A sketch of `size` columns; arguments as for `range_finder`.

    Orthonormalisation goes from left to right, so column i never depends on those behind it, and a sketch of fewer
    columns with the first columns of the same Gaussian is this one cut off.
    """
    Q_GRL = range_finder(A_GRN, size, power_iterations, generator)
    P_GNL, T_GLL = torch.linalg.qr(_transposed_times(A_GRN, Q_GRL))
    return Sketch(Q_GRL, P_GNL, T_GLL)


def range_finder(A_GRN: Tensor, size: int, power_iterations: int, generator: torch.Generator) -> Tensor:
    """An orthonormal basis Q that holds most of A's range: the range of (A A^T)^q A Omega, Omega Gaussian.

    With QR between multiplications (algorithm 4.4), for without it small singular values are lost to rounding.

    Args:
        size: L, columns of the basis, at most min(R, N).
        power_iterations: q; more sharpen the basis where singular values fall slowly.

    Returns: Q (G, R, L).
    """
    if not 1 <= size <= min(A_GRN.shape[-2:]):
        raise ValueError(f"size must be from 1 to {min(A_GRN.shape[-2:])}, the smaller side. Got {size}.")
    Q_GRL = _orthonormal(A_GRN @ _gaussian((*A_GRN.shape[:-2], A_GRN.shape[-1], size), A_GRN, generator))
    for _ in range(power_iterations):
        Q_GRL = _orthonormal(A_GRN @ _orthonormal(_transposed_times(A_GRN, Q_GRL)))
    return Q_GRL


def randomised_svd(
    A_GRN: Tensor,
    rank: int,
    generator: torch.Generator,
    *,
    oversampling: int = OVERSAMPLING,
    power_iterations: int = POWER_ITERATIONS,
) -> TruncatedSVD:
    """The `rank` largest singular values and their vectors, about: the SVD of Q^T A, Q from `range_finder`.

    L = rank + oversampling, but at most min(R, N), where this is the exact SVD. With J = rank, p = oversampling >= 2
    and q = 0 (theorems 10.5 and 10.6):

        E ||A - Q Q^T A||_F <= sqrt(1 + J / (p - 1)) tau,    tau^2 = sum_{i > J} sigma_i^2
        E ||A - Q Q^T A||_2 <= (1 + sqrt(J / (p - 1))) sigma_{J+1} + e sqrt(J + p) / p tau,

    and q power iterations take the sigmas to the power 2q + 1 and the right side to 1 / (2q + 1). Cutting to rank J
    adds at most sigma_{J+1} (theorem 9.3). Singular values are never above the true ones.
    """
    size = min(rank + oversampling, *A_GRN.shape[-2:])
    return sketch(A_GRN, size, power_iterations, generator).svd(size, rank)


def expected_bound(
    singular_values: Tensor,
    rank: int,
    *,
    oversampling: int = OVERSAMPLING,
    power_iterations: int = POWER_ITERATIONS,
) -> float:
    """What E ||A - What||_2 is not above, over all Gaussians, for What of `randomised_svd`; needs all singular values.

    ((1 + sqrt(J / (p - 1))) sigma_{J+1}^m + e sqrt(J + p) / p (sum_{i > J} sigma_i^2m)^1/2)^(1/m) + sigma_{J+1} with
    m = 2q + 1.

    Args:
        singular_values: of A, falling, (S,) with S >= rank + oversampling.
        oversampling: p, at least 2.
    Source: theorem 10.6, for (A A^T)^q A by theorem 9.2 and Jensen's inequality; theorem 9.3 for cutting to the rank.
    """
    if oversampling < 2 or not 1 <= rank <= len(singular_values) - oversampling:
        raise ValueError(
            f"oversampling must be at least 2 and rank + oversampling at most {len(singular_values)}, the number of "
            f"singular values. Got rank {rank}, oversampling {oversampling}."
        )
    largest, power = float(singular_values[0]) or 1.0, 2 * power_iterations + 1
    tail = (singular_values[rank:].double() / largest) ** power
    first = (1 + math.sqrt(rank / (oversampling - 1))) * float(tail[0])
    second = math.e * math.sqrt(rank + oversampling) / oversampling * float(tail.norm())
    basis: float = largest * (first + second) ** (1 / power)
    return basis + float(singular_values[rank])


def norm_bound(B_RN: Tensor, generator: torch.Generator, probes: int = PROBES) -> float:
    """A number that ||B||_2 is not above, except with probability 10^-probes: 10 sqrt(2 / pi) max_i ||B w_i||.

    For B = (I - Q Q^T) A this is the a-posteriori error estimate of a basis Q (equation 4.3). It needs no more than
    products with B, whose norms are near ||B||_F: the bound is about 8 ||B||_F, and safe rather than sharp.
    """
    w_NT = _gaussian((B_RN.shape[-1], probes), B_RN, generator)
    return 10 * math.sqrt(2 / math.pi) * float((B_RN @ w_NT).norm(dim=0).max())


def operator_norm(A_RN: Tensor, generator: torch.Generator, *, block: int = 4, steps: int = 12) -> float:
    """||A||_2, from below; see `leading_pair`."""
    return leading_pair(A_RN, generator, block=block, steps=steps)[0]


def leading_pair(A_RN: Tensor, generator: torch.Generator, *, block: int = 4, steps: int = 12) -> tuple[float, Tensor]:
    """The largest singular value, from below, and its left vector (R,), of unit length.

    Those of Q Q^T A, with Q a basis of the block Krylov space of A Omega, A A^T A Omega, ..., Omega Gaussian. Exact
    where that space is all of A's smaller side; else the value's relative error falls like 1 / steps^2 whatever the gap
    between singular values (power iteration: 1 / steps), and exponentially where there is one.

    Source: Musco and Musco 2015, https://arxiv.org/abs/1504.05477
    """
    if min(A_RN.shape) <= block * (steps + 1):
        U, S, _ = torch.linalg.svd(A_RN, full_matrices=False)
        return float(S[0]), U[:, 0]
    parts = [_orthonormal(A_RN @ _gaussian((A_RN.shape[-1], block), A_RN, generator))]
    for _ in range(steps):
        parts.append(_orthonormal(A_RN @ _transposed_times(A_RN, parts[-1])))
    Q_RL = _orthonormal(torch.cat(parts, dim=1))
    U, S, _ = torch.linalg.svd(Q_RL.mT @ A_RN, full_matrices=False)
    return float(S[0]), Q_RL @ U[:, 0]


def _gaussian(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def _transposed_times(A: Tensor, Y: Tensor) -> Tensor:
    """A^T Y as (Y^T A)^T, which CPUs multiply up to twenty times faster where Y is narrow."""
    return (Y.mT @ A).mT


def _orthonormal(Y: Tensor) -> Tensor:
    """An orthonormal basis of the columns."""
    Q: Tensor = torch.linalg.qr(Y)[0]
    return Q
