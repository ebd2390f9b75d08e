"""Factors of one layer's slices that change the network's output the least, to second order.

Shape suffixes as in `experiment.methods.data.fisher`; J = rank.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.layers.factored_layers import Slicing, fold, unfold
from experiment.layers.plan import Factors
from experiment.methods.data.fisher import DAMPING, LayerMoments, in_axes
from experiment.methods.data.responses import precise, span_of
from experiment.methods.lowrank.spectra import COLUMNS

Floats = NDArray[np.float64]
UNSEEN = 1e-6  # of the mean square of the inputs: the weight of directions that do not occur in the data
SHORTEST = 1e-12  # of the longest component: shorter ones are not balanced between the factors


class LayerDirections:
    """The singular vectors of every slice W_i in the metric of outputs and inputs, G^1/2 W_i C_i^1/2.

    Args:
        weight: the layer's filters (F, C / blocks, *kernel); they must not change while this object is used.
        moments: of the layer's inputs and of the gradients at its outputs.
        tops: slicing -> the largest rank that is asked for; by default the full one.

    Attributes:
        tails: slicing -> (S,): the predicted divergence at rank 1, 2, ...: squared singular values beyond the rank,
            summed over slices.
        total: the predicted divergence without the layer, the largest over slicings.
    """

    def __init__(self, weight: Tensor, moments: LayerMoments, tops: Mapping[Slicing, int] | None = None) -> None:
        self._weight, self._blocks, self._tops = weight.detach(), len(moments.gradient), tops or {}
        self._values_OH, self._vectors_OHH = _spectrum(precise(moments.gradient))
        self._spanned, self._held = moments.axes is not None, dict[str, Tensor]()
        if moments.axes is not None:
            self._held["axes"] = moments.axes
        self._bases: dict[Slicing, Tensor] = {}  # in float32, and of tall slices (G, N, N): (G, R, N) take too much
        self.tails: dict[Slicing, Floats] = {}
        self.total = 0.0
        weighted = self._weighted(weight)
        for slicing, gram in moments.grams.items():
            self._decompose(slicing, self._fold(weighted, slicing), gram / moments.places[slicing])

    def factors(self, factors: Factors, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """U (G, R, J) and V (G, J, N) in float64, with equal norms for every component.

        Args:
            weight: other weights, encoded along the same directions with the same U.
        """
        slicing = (factors.groups, factors.folding)
        W_GRN = self._fold(self._weighted(self._weight), slicing)
        u_GRJ = _left(W_GRN, precise(self._bases[slicing][:, :, : factors.rank]))
        U_GRJ, V_GJN = _apply(self._root(-0.5), u_GRJ), u_GRJ.mT @ W_GRN
        lengths_GJ = V_GJN.norm(dim=2) / U_GRJ.norm(dim=1)  # no column of U is zero, for those of u are of length 1
        longest = float(lengths_GJ.max()) or 1.0
        root_G1J = lengths_GJ.clamp_min(longest * SHORTEST).sqrt()[:, None]
        if weight is not None:
            V_GJN = u_GRJ.mT @ self._fold(self._weighted(weight), slicing)
        axes_FN = self._axes()
        U_GRJ = U_GRJ if axes_FN is None else axes_FN @ U_GRJ
        return U_GRJ * root_G1J, V_GJN / root_G1J.mT

    def product(self, factors: Factors) -> Tensor:
        """The filters that the factors represent, in float64."""
        U_GRJ, V_GJN = self.factors(factors)
        return unfold(U_GRJ @ V_GJN, self._weight.shape, factors.folding, self._blocks)

    def divergence(self, change: Tensor, moments_ONN: Tensor) -> float:
        """The predicted divergence of any change of the filters, for the moments of the inputs of each block."""
        weighted = self._weighted(change).flatten(1)
        X_OHN = torch.unflatten(weighted, 0, (self._blocks, -1))
        return float(((X_OHN @ moments_ONN.to(X_OHN)) * X_OHN).sum())

    def importance(self) -> Tensor:
        """The diagonal of G: (F,)."""
        axes_FN = self._axes()
        squares = torch.cat(
            [(v_HH.square() @ values_H) for values_H, v_HH in zip(self._values_OH, self._vectors_OHH, strict=True)]
        )
        if axes_FN is None:
            return squares
        root = self._root(0.5)[0]
        return (axes_FN @ root).square().sum(1)

    def forget(self) -> None:
        """Drop the roots of G, which are computed again when needed."""
        self._held.clear()

    def _axes(self) -> Tensor | None:
        if self._spanned and "axes" not in self._held and (axes_FN := span_of(self._weight)) is not None:
            self._held["axes"] = axes_FN
        return self._held.get("axes")

    def _root(self, power: float) -> Tensor:
        """G^1/2 or its inverse."""
        key = str(power)
        if key not in self._held:
            blocks = zip(self._values_OH.sqrt(), self._vectors_OHH, strict=True)
            scaled = ((v_HH * root_H if power > 0 else v_HH / root_H) @ v_HH.T for root_H, v_HH in blocks)
            self._held[key] = torch.stack(list(scaled))
        return self._held[key]

    def _weighted(self, weight: Tensor) -> Tensor:
        """G^1/2 W, in the weight's shape, or in that of its coordinates."""
        axes_FN, roots = self._axes(), self._root(0.5)
        rows = len(weight) if axes_FN is None else axes_FN.shape[1]
        W_FN = weight.detach().flatten(1)
        weighted_FN = roots.new_empty(rows, W_FN.shape[1])
        size = max(1, COLUMNS // len(W_FN))  # at a time
        for part_Fn, out_Fn in zip(torch.split(W_FN, size, 1), torch.split(weighted_FN, size, 1), strict=True):
            blocks = torch.split(in_axes(precise(part_Fn), axes_FN), rows // self._blocks)
            out_Fn.copy_(torch.cat([root_HH @ W_Hn for root_HH, W_Hn in zip(roots, blocks, strict=True)]))
        return weighted_FN.reshape(rows, *weight.shape[1:])

    def _fold(self, weight: Tensor, slicing: Slicing) -> Tensor:
        return fold(weight, *slicing, self._blocks)

    def _decompose(self, slicing: Slicing, W_GRN: Tensor, gram_GSS: Tensor) -> None:
        if W_GRN.shape[1] <= W_GRN.shape[2]:
            root_OHH = self._root(0.5)
            squares, basis = _from_responses(W_GRN, _apply(root_OHH, _apply(root_OHH, gram_GSS).mT))
        else:
            squares, basis = _from_inputs(W_GRN, gram_GSS)
        summed = squares.flip(-1).clamp_min(0).sum(0).cpu().numpy()
        self.tails[slicing] = np.append(np.cumsum(summed[::-1])[::-1][1:], 0.0)
        self.total = max(self.total, float(summed.sum()))
        self._bases[slicing] = basis.flip(-1)[:, :, : self._tops.get(slicing)].float()


def _from_responses(W_GRN: Tensor, gram_GRR: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values of W_i C_i^1/2, rising, and its left vectors (G, R, R), from W_i C_i W_i^T."""
    inner_GRR = W_GRN @ W_GRN.mT
    traces = [float(matrix.diagonal(dim1=1, dim2=2).sum()) for matrix in (gram_GRR, inner_GRR)]
    mean = traces[0] / (traces[1] or 1.0)
    squares, left_GRR = torch.linalg.eigh(gram_GRR + UNSEEN * (mean or 1.0) * inner_GRR)
    return squares, left_GRR


def _from_inputs(W_GRN: Tensor, gram_GNN: Tensor) -> tuple[Tensor, Tensor]:
    """The same from C_i, with C_i^1/2 times the right vectors, (G, N, N), instead of the left ones."""
    values, axes_GNN = torch.linalg.eigh(gram_GNN)
    mean = float(values.mean())
    root_GNN = axes_GNN * (values.clamp_min(0) + UNSEEN * (mean or 1.0)).sqrt()[:, None]
    A_GRN = W_GRN @ root_GNN
    squares, right_GNN = torch.linalg.eigh(A_GRN.mT @ A_GRN)
    return squares, root_GNN @ right_GNN


def _left(W_GRN: Tensor, basis: Tensor) -> Tensor:
    """The left vectors of the first columns of a basis, largest singular value first: (G, R, J)."""
    if basis.shape[1] == W_GRN.shape[1]:
        return basis
    # QR, because W x / |W x| is far from orthogonal to the others where |W x| is tiny
    left_GRJ: Tensor = torch.linalg.qr(W_GRN @ basis)[0]
    return left_GRJ


def _spectrum(gradient_OHH: Tensor) -> tuple[Tensor, Tensor]:
    """Damped eigenvalues of G and its eigenvectors; ones without gradients."""
    values, vectors = torch.linalg.eigh(gradient_OHH)
    mean = float(values.clamp_min(0).mean())
    return (values.clamp_min(0) + DAMPING * mean) if mean > 0 else torch.ones_like(values), vectors


def _apply(matrix_OHH: Tensor, A_GRN: Tensor) -> Tensor:
    """The matrices applied over filters; the rows are filter-major, D per filter."""
    blocks, features, _ = matrix_OHH.shape
    rows, columns = A_GRN.shape[1:]
    parts = torch.split(A_GRN, len(A_GRN) // blocks)
    applied = [m_HH @ A.reshape(len(A), features, -1) for m_HH, A in zip(matrix_OHH, parts, strict=True)]
    return torch.cat(applied).reshape(-1, rows, columns)
