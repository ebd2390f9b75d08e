"""HOSVD and HOOI of a convolution's weight, W = G x_1 U x_2 V approximately: bases of its outputs and its inputs.

Shape suffixes: F = filters (output features), C = input channels, K = kernel elements, R = rank of the outputs,
Q = rank of the inputs, A = any side, J = its rank.

Source: De Lathauwer et al. 2000, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of higher-order tensors"
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Parts = tuple[Tensor, Tensor, Tensor]
"""U (F, R) and V (C, Q), orthonormal, and between them G (R, Q, K)."""
MOST_STEPS, FINE = 50, 1e-4  # of HOOI, which ends when a step lowers the error by a smaller share


def hosvd_errors(W_FCK: Tensor) -> NDArray[np.float64]:
    """The share of ||W||^2 that is lost for every pair of ranks, [R - 1, Q - 1], with the bases of the HOSVD: (F, C).

    What they keep is the squared norm of the first R and Q slices of one core.
    """
    G_FCK = torch.einsum("fck,fr,cq->rqk", W_FCK, _directions(W_FCK), _directions(W_FCK.transpose(0, 1)))
    kept_FC = G_FCK.square().sum(2).cumsum(0).cumsum(1).cpu().numpy()
    total: float = kept_FC[-1, -1]
    return np.clip((total - kept_FC) / (total or 1.0), 0.0, None)


def hooi(W_FCK: Tensor, outputs: int, inputs: int) -> Parts:
    """The bases with the largest ||G|| that alternating steps from the HOSVD reach: U, G and V.

    With one basis fixed, the other one is the best for it. So no step raises the error, which is ||W||^2 - ||G||^2.
    """
    total, lost = float(W_FCK.square().sum()), math.inf
    V_CQ = _leading(W_FCK.transpose(0, 1), inputs)
    for _ in range(MOST_STEPS):
        U_FR = _leading(torch.einsum("fck,cq->fqk", W_FCK, V_CQ), outputs)
        half_CRK = torch.einsum("fck,fr->crk", W_FCK, U_FR)
        V_CQ = _leading(half_CRK, inputs)
        G_RQK = torch.einsum("crk,cq->rqk", half_CRK, V_CQ)
        before, lost = lost, total - float(G_RQK.square().sum())
        if before - lost <= FINE * max(lost, 1e-12 * total):
            break
    return U_FR, G_RQK, V_CQ


def _leading(W_ABK: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of a tensor unfolded by its first side: (A, J); for J = A the unit vectors."""
    if rank == len(W_ABK):
        return torch.eye(rank, dtype=W_ABK.dtype, device=W_ABK.device)
    return _directions(W_ABK)[:, :rank]


def _directions(W_ABK: Tensor) -> Tensor:
    """All of them, the one with the largest singular value first: (A, A)."""
    W_AN = W_ABK.flatten(1)
    vectors_AA: Tensor = torch.linalg.eigh(W_AN @ W_AN.T)[1]
    return vectors_AA.flip(1)
