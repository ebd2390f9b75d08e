"""Randomised linear algebra: a matrix's range, truncated SVD and norm from a few products with Gaussian vectors.

Everything is computed in the precision of the input, which should be float64: in float32, singular values below about
1e-7 of the largest one are lost to rounding. Gaussians are drawn on the CPU, so they are the same on all devices.

Shape suffixes: G = a batch of matrices, R = rows, N = columns, L = sketch (columns of the basis), J = rank.

Source: Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061
"""

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
    """A ~ Q B with B^T = P T. Smaller sketches are part of it: they have the first columns of Q and of P.

    Q (G, R, L) and P (G, N, L) with orthonormal columns, T (G, L, L) upper triangular.
    """

    Q: Tensor
    P: Tensor
    T: Tensor

    def svd(self, size: int, rank: int) -> TruncatedSVD:
        """The `rank` largest singular values and their vectors, approximately: the SVD of Q^T A, from `size` columns.

        With L = min(R, N) columns this is the exact SVD. With J = rank, p = size - rank >= 2 and no power iterations
        (theorems 10.5 and 10.6):

            E ||A - Q Q^T A||_F <= sqrt(1 + J / (p - 1)) tau,    tau^2 = sum_{i > J} sigma_i^2
            E ||A - Q Q^T A||_2 <= (1 + sqrt(J / (p - 1))) sigma_{J+1} + e sqrt(J + p) / p tau,

        and q power iterations raise the sigmas to the power 2q + 1 and the right side to 1 / (2q + 1). Cutting to rank
        J adds at most sigma_{J+1} (theorem 9.3). Singular values never exceed the true ones.
        """
        U, S, Vt = torch.linalg.svd(self.T[..., :size, :size].mT)
        left, right = self.Q[..., :size] @ U[..., :rank], self.P[..., :size] @ Vt[..., :rank, :].mT
        return TruncatedSVD(left, S[..., :rank], right.mT)


def sketch(A_GRN: Tensor, size: int, power_iterations: int, generator: torch.Generator) -> Sketch:
    """A sketch of `size` columns; arguments as for `range_finder`.

    Orthonormalisation proceeds from left to right, so a column never depends on later ones, and a sketch with the first
    columns of the same Gaussian consists of the first columns of this one.
    """
    Q_GRL = range_finder(A_GRN, size, power_iterations, generator)
    P_GNL, T_GLL = torch.linalg.qr(_transposed_times(A_GRN, Q_GRL))
    return Sketch(Q_GRL, P_GNL, T_GLL)


def range_finder(A_GRN: Tensor, size: int, power_iterations: int, generator: torch.Generator) -> Tensor:
    """An orthonormal basis Q of most of A's range: that of (A A^T)^q A Omega, Omega Gaussian.

    There is a QR between multiplications (algorithm 4.4); without it small singular values are lost to rounding.

    Args:
        size: L, columns of the basis, at most min(R, N).
        power_iterations: q; more of them help if the singular values decay slowly.

    Returns: Q (G, R, L).
    """
    if not 1 <= size <= min(A_GRN.shape[-2:]):
        raise ValueError(f"size must be from 1 to {min(A_GRN.shape[-2:])}, the smaller side. Got {size}.")
    Q_GRL = _orthonormal(A_GRN @ _gaussian((*A_GRN.shape[:-2], A_GRN.shape[-1], size), A_GRN, generator))
    for _ in range(power_iterations):
        Q_GRL = _orthonormal(A_GRN @ _orthonormal(_transposed_times(A_GRN, Q_GRL)))
    return Q_GRL


def norm_bound(B_RN: Tensor, generator: torch.Generator, probes: int = PROBES) -> float:
    """An upper bound of ||B||_2 that fails with probability 10^-probes: 10 sqrt(2 / pi) max_i ||B w_i||.

    For B = (I - Q Q^T) A this is the a-posteriori error estimate of a basis Q (equation 4.3). The norms of the products
    are close to ||B||_F, so the bound is about 8 ||B||_F: safe rather than sharp.
    """
    w_NT = _gaussian((B_RN.shape[-1], probes), B_RN, generator)
    return 10 * math.sqrt(2 / math.pi) * float((B_RN @ w_NT).norm(dim=0).max())


def operator_norm(A_RN: Tensor, generator: torch.Generator, *, block: int = 4, steps: int = 12) -> float:
    """||A||_2, approximated from below; see `leading_pair`."""
    return leading_pair(A_RN, generator, block=block, steps=steps)[0]


def leading_pair(A_RN: Tensor, generator: torch.Generator, *, block: int = 4, steps: int = 12) -> tuple[float, Tensor]:
    """The largest singular value, approximated from below, and its left vector (R,), of unit length.

    They are those of Q Q^T A, with Q a basis of the block Krylov space of A Omega, A A^T A Omega, ..., Omega Gaussian.
    They are exact if that space spans A's smaller side; otherwise the value's relative error decreases like
    1 / steps^2 without a gap between singular values (power iteration: 1 / steps), and exponentially with one.

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
    """A^T Y as (Y^T A)^T, which is up to twenty times faster on CPUs if Y is narrow."""
    return (Y.mT @ A).mT


def _orthonormal(Y: Tensor) -> Tensor:
    """An orthonormal basis of the columns."""
    Q: Tensor = torch.linalg.qr(Y)[0]
    return Q
