"""The operator norm of the residual that truncated SVDs leave of slices side by side.

Slice g is A_g = L_g S_g R_g^T. Cut to rank J, the residual of [A_1 ... A_G] has the Gram matrix D D^T, where D consists
of the columns of all L_g S_g beyond rank J: the residual is never formed, and no matrix exceeds the smaller side.

Shape suffixes as in `experiment.methods.lowrank.spectra`; D = the columns beyond rank J.
"""

import torch
from torch import Tensor

DENSE = 256  # up to this size all eigenvectors are cheaper than one by iteration
STEPS, EVERY = 160, 8
TOLERANCE = 1e-8
_TINY = 1e-300


class Residual:
    """The residual of one slicing, at any rank.

    Args:
        vectors_GRS: L_g S_g, or L_g alone.
        values_GS: S_g in the latter case.
        gram_RR: [A_1 ... A_G] times its transpose; None where the other side, G S, is smaller than R.
    """

    def __init__(self, vectors_GRS: Tensor, values_GS: Tensor | None, gram_RR: Tensor | None) -> None:
        self._vectors, self._values, self._gram = vectors_GRS, values_GS, gram_RR
        if gram_RR is None:
            every_RN = self._parts(0, vectors_GRS.shape[2])
            self._inner = every_RN.mT @ every_RN

    def squares(self, rank: int) -> Tensor:
        """For every j the sum over g of <v, column j of L_g S_g>^2; v: first left vector of the residual at `rank`.

        Summed over j >= rank: ||residual||_2^2. Over j >= i: ||v^T residual at rank i||^2, a lower bound of its norm.

        Returns: (S,).
        """
        groups, _, full = self._vectors.shape
        if self._gram is None:
            inner_GSGS = self._inner.reshape(groups, full, groups, full)
            beyond_DD = inner_GSGS[:, rank:, :, rank:].reshape(2 * [groups * (full - rank)])
            w_D = first_eigenvector(beyond_DD)  # v = D w / ||D w||
            length = (w_D @ beyond_DD @ w_D).clamp_min(_TINY).sqrt()
            along_GS = (inner_GSGS[:, :, :, rank:].reshape(groups * full, -1) @ w_D).reshape(groups, full) / length
        else:
            v_R = first_eigenvector(self._left_gram(rank, full))
            along_GS = self._vectors.mT @ v_R
            along_GS = along_GS if self._values is None else along_GS * self._values
        return along_GS.square().sum(0)

    def _left_gram(self, rank: int, full: int) -> Tensor:
        """D D^T, directly or as the whole minus the kept part, whichever multiplies fewer columns."""
        if rank > full // 2:
            D = self._parts(rank, full)
            return D @ D.mT
        assert self._gram is not None
        kept = self._parts(0, rank)
        return self._gram - kept @ kept.mT

    def _parts(self, first: int, last: int) -> Tensor:
        """The columns of all L_g S_g from one rank to another: (R, G * columns)."""
        parts_GRS = self._vectors[:, :, first:last]
        if self._values is not None:
            parts_GRS = parts_GRS * self._values[:, None, first:last]
        return parts_GRS.transpose(0, 1).flatten(1)


def first_eigenvector(M_NN: Tensor) -> Tensor:
    """The unit eigenvector of the largest eigenvalue of a symmetric positive semidefinite matrix, in float64.

    Lanczos with full reorthogonalisation from a fixed random vector, until the residual ||M v - theta v|| of the Ritz
    pair is at most TOLERANCE theta. The error of theta is even smaller, residual^2 / gap.
    """
    size = len(M_NN)
    if size > DENSE:
        start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=M_NN.dtype).to(M_NN.device)
        Q_KN, T_KK = M_NN.new_zeros(STEPS + 1, size), M_NN.new_zeros(STEPS, STEPS)
        Q_KN[0] = start / start.norm()
        for k in range(STEPS):
            y_N, earlier = M_NN @ Q_KN[k], Q_KN[: k + 1]
            for _ in range(2):  # a single pass leaves rounding errors that grow
                share_K = earlier @ y_N
                y_N = y_N - share_K @ earlier
                T_KK[k, : k + 1] += share_K
            beyond = y_N.norm()
            Q_KN[k + 1] = y_N / beyond.clamp_min(_TINY)
            if (k + 1) % EVERY == 0:
                ritz_K, S_KK = torch.linalg.eigh(T_KK[: k + 1, : k + 1])  # reads the lower triangle
                if beyond * S_KK[-1, -1].abs() <= TOLERANCE * ritz_K[-1]:
                    ritz_vector: Tensor = S_KK[:, -1] @ earlier
                    return ritz_vector
    vector: Tensor = torch.linalg.eigh(M_NN)[1][:, -1]
    return vector
