"""Factors of one layer's slices that change the network's output least, to second order.

Shape suffixes as in `experiment.methods.fisher`; J = rank.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.layers.lowrank import fold, unfold
from experiment.layers.plan import Factors
from experiment.methods.fisher import DAMPING, LayerMoments
from experiment.methods.spectra import Slicing

Floats = NDArray[np.float64]
_TINY = 1e-150


class LayerDirections:
    """The singular vectors of every slice W_i in the metric of outputs and inputs, G^1/2 W_i C_i^1/2.

    Args:
        weight: (F, C, X, Y) or (F, C).
        moments: of the layer's inputs and of the gradients at its outputs.

    Attributes:
        tails: slicing -> (S,): sum over slices of the squared singular values beyond rank 1, 2, ...: the predicted
            divergence.
        total: the largest of the sums of all of them.
    """

    def __init__(self, weight: Tensor, moments: LayerMoments) -> None:
        self._weight = weight.detach().clone()  # networks in which weights are tried out may share the tensor
        self._root_FF, self._inverse_FF = _roots(moments.gradient.double())
        self._vectors: dict[Slicing, Tensor] = {}
        self.tails: dict[Slicing, Floats] = {}
        self.total = 0.0
        for slicing, gram in moments.grams.items():
            self._decompose(slicing, gram / moments.places[slicing])

    def factors(self, factors: Factors, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """U (G, R, J) and V (G, J, N) in float64, equally long for every component.

        Args:
            weight: other weights than those that the directions are from, encoded along the same ones.
        """
        u_GRJ = self._vectors[factors.groups, factors.folding][:, :, : factors.rank].double()
        U_GRJ, V_GJN = _apply(self._inverse_FF, u_GRJ), self._encoded(u_GRJ, self._weight, factors)
        lengths = V_GJN.norm(dim=2) / U_GRJ.norm(dim=1).clamp_min(_TINY)
        root_G1J = lengths.sqrt()[:, None].clamp_min(_TINY)
        if weight is not None:
            V_GJN = self._encoded(u_GRJ, weight, factors)
        return U_GRJ * root_G1J, V_GJN / root_G1J.mT

    def _encoded(self, u_GRJ: Tensor, weight: Tensor, factors: Factors) -> Tensor:
        return u_GRJ.mT @ _apply(self._root_FF, fold(weight.double(), factors.groups, factors.folding))

    def product(self, factors: Factors) -> Tensor:
        """The dense weight that the factors stand for, in float64."""
        U_GRJ, V_GJN = self.factors(factors)
        return unfold(U_GRJ @ V_GJN, self._weight.shape, factors.folding)

    def _decompose(self, slicing: Slicing, gram_GSS: Tensor) -> None:
        W_GRN = _apply(self._root_FF, fold(self._weight.double(), *slicing))
        if W_GRN.shape[1] <= W_GRN.shape[2]:
            # of the responses W_i C_i W_i^T
            half = _apply(self._root_FF, gram_GSS)
            squares, vectors = torch.linalg.eigh(_apply(self._root_FF, half.mT))
        else:
            values, axes = torch.linalg.eigh(gram_GSS)
            A_GRN = W_GRN @ (axes * values.clamp_min(0).sqrt()[:, None])
            squares, right = torch.linalg.eigh(A_GRN.mT @ A_GRN)
            vectors = A_GRN @ right
            vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(_TINY)
        summed = squares.flip(-1).clamp_min(0).sum(0).cpu().numpy()
        self.tails[slicing] = np.append(np.cumsum(summed[::-1])[::-1][1:], 0.0)
        self.total = max(self.total, float(summed.sum()))
        self._vectors[slicing] = vectors.flip(-1).float()


def _roots(gradient_FF: Tensor) -> tuple[Tensor, Tensor]:
    """G^1/2 and its inverse; the identity where no gradient arrives."""
    values, vectors = torch.linalg.eigh(gradient_FF)
    mean = float(values.clamp_min(0).mean())
    values = (values.clamp_min(0) + DAMPING * mean) if mean > 0 else torch.ones_like(values)
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def _apply(matrix_FF: Tensor, A_GRN: Tensor) -> Tensor:
    """The matrix on the filters of every row, of which there are D a filter, filter-major."""
    features = matrix_FF.shape[0]
    groups, rows, columns = A_GRN.shape
    return (matrix_FF @ A_GRN.reshape(groups, features, -1)).reshape(groups, rows, columns)
