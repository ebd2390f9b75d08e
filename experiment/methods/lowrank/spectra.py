"""Singular values and vectors of one layer's filters, cut into groups of input channels, each computed once.

They come from Gram matrices in float64, A A^T or A^T A, whichever is smaller. The eigenvectors of the smaller side are
orthonormal to machine precision and the other factor is a projection of A onto them, so products are exact to about
1e-15 and singular values to about 1e-8 of the largest one. Gram matrices of some numbers of groups give those of
others. This is 10 to 60 times faster than an SVD of wide slices.

Shape suffixes as in `experiment.layers.factored_layers`: G = groups, R = rows, N = columns of a slice, J = rank,
S = min(R, N).
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.errors import CompressionError
from experiment.layers.factored_layers import Slicing, fold, split_kernel
from experiment.methods.lowrank.residual_norm import Residual
from experiment.progress import progress

Floats = NDArray[np.float64]
COLUMNS = 2**23  # elements of a weight in float64 at a time, some of its columns: 64 MiB


class Spectra(Protocol):
    """The spectra of one layer's slices that allocation needs; see `LayerSpectra`, where all are exact.

    Other implementations may have only the K largest of a slice's S singular values, and factors up to `top_rank`.
    """

    def full_rank(self, groups: int = 1, folding: int = 0) -> int: ...
    def top_rank(self, groups: int = 1, folding: int = 0) -> int: ...
    def values(self, groups: int = 1, folding: int = 0) -> Floats: ...
    def prepare(self, all_groups: Sequence[int], folding: int = 0) -> None: ...
    def unseen_energy(self, groups: int = 1, folding: int = 0) -> float: ...
    def norm(self, folding: int = 0) -> float: ...
    def factors(self, rank: int, groups: int = 1, folding: int = 0) -> tuple[Tensor, Tensor]: ...
    def exact_error(self, rank: int, groups: int = 1, folding: int = 0) -> float: ...
    def exact_bounds(self, rank: int, groups: int = 1, folding: int = 0) -> Floats: ...
    def held(self) -> int: ...
    def forget(self) -> None: ...


class LayerSpectra:
    """Exact spectra and truncated SVDs of one layer's slices, cached for every number of groups and every folding.

    Args:
        weight: the layer's filters (F, C / blocks, *kernel), finite; they must not change while this object is used.
        blocks: groups of the layer itself.
    """

    def __init__(self, weight: Tensor, blocks: int = 1) -> None:
        self._weight, self._blocks = weight.detach(), blocks
        largest = float(torch.linalg.vector_norm(self._weight, torch.inf)) if weight.numel() else 0.0
        self._scale = largest or 1.0  # squares of scaled weights neither overflow nor vanish
        self._values: dict[Slicing, Floats] = {}
        self._bases: dict[Slicing, Tensor] = {}
        self._grams: dict[int, Tensor] = {}
        self._exact: dict[tuple[int, int, int], Floats] = {}
        # as large as the weight, so only those of the latest slicing
        self._projections: dict[Slicing, Tensor] = {}
        self._residuals: dict[Slicing, list[Residual]] = {}

    def full_rank(self, groups: int = 1, folding: int = 0) -> int:
        """S, the largest possible rank of a slice."""
        return min(self._shape(groups, folding))

    def top_rank(self, groups: int = 1, folding: int = 0) -> int:
        """The largest known rank, here the full rank."""
        return self.full_rank(groups, folding)

    def unseen_energy(self, groups: int = 1, folding: int = 0) -> float:
        """The sum of the squared singular values that are missing in `values`: 0."""
        return 0.0

    def values(self, groups: int = 1, folding: int = 0) -> Floats:
        """Singular values of every slice, those of one block after the other, in falling order: (G, S)."""
        if (groups, folding) not in self._values:
            self.prepare((groups,), folding)
        return self._values[groups, folding]

    def prepare(self, all_groups: Sequence[int], folding: int = 0) -> None:
        """Compute `values` for several numbers of groups together, sharing the Gram matrices."""
        missing = [groups for groups in set(all_groups) if (groups, folding) not in self._values]
        grams: dict[int, Tensor] = {}
        # wide slices from the finest on, whose Gram matrices are summed; then the others from the coarsest on
        ordered = sorted(missing, key=lambda g: -g if self._is_wide(g, folding) else g)
        for groups in progress(ordered, "singular values of a layer, by number of groups"):
            grams[groups] = gram = self._related_gram(groups, folding, grams)
            if groups == 1:
                self._grams[folding] = gram
            squares = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)
            self._values[groups, folding] = squares.sqrt().cpu().numpy() * self._scale

    def norm(self, folding: int = 0) -> float:
        """The operator norm of the whole folded weight."""
        return float(self.values(1, folding)[:, 0].max())

    def factors(self, rank: int, groups: int = 1, folding: int = 0) -> tuple[Tensor, Tensor]:
        """The best factors of every slice, A_g = U_g V_g, with the singular values shared equally between them.

        Returns: U (G, R, J) and V (G, J, N) in float64 (Eckart-Young: truncated SVD, U = L S^1/2, V = S^1/2 R^T).
        """
        B_GSJ, P = self._basis(groups, folding)[:, :, :rank], self._projection(groups, folding)
        share = self._scale**0.5
        if self._is_wide(groups, folding):
            P_GJN = P[:, :rank]
            root = P_GJN.norm(dim=2, keepdim=True).sqrt()
            return B_GSJ * (root.mT * share), P_GJN * (share / root.clamp_min(_TINY))
        P_GRJ = P[:, :, :rank]
        root = P_GRJ.norm(dim=1, keepdim=True).sqrt()
        return P_GRJ * (share / root.clamp_min(_TINY)), B_GSJ.mT * (root.mT * share)

    def exact_error(self, rank: int, groups: int = 1, folding: int = 0) -> float:
        """||W - What||_2 / ||W||_2 when every slice keeps its `rank` largest singular values; 0 for a zero weight."""
        return float(self.exact_bounds(rank, groups, folding)[rank - 1])

    def exact_bounds(self, rank: int, groups: int = 1, folding: int = 0) -> Floats:
        """The exact error at `rank`, and lower bounds of the errors at all other ranks.

        With v the residual's first left singular vector at `rank`, the error at any rank is at least
        ||v^T (W - What)|| / ||W||_2, and equal to it at `rank`.

        Returns: the bounds for ranks 1 to S: (S,), falling to 0.
        """
        values, norm = self.values(groups, folding), self.norm(folding)
        key = (rank, groups, folding)
        if groups == 1 or norm == 0 or rank >= values.shape[1]:
            return reference_errors(self, groups, folding)
        if key not in self._exact:
            squares_OJ = torch.stack([own.squares(rank) for own in self._residual(groups, folding)])
            beyond_J = squares_OJ.flip(1).cumsum(1).flip(1).amax(0).cpu().numpy()
            self._exact[key] = np.sqrt(np.append(beyond_J[1:], 0.0)) * (self._scale / norm)
        return self._exact[key]

    def held(self) -> int:
        """Elements of the matrices that are cached."""
        caches = (self._bases, self._grams, self._projections)
        return sum(matrix.numel() for cache in caches for matrix in cache.values())

    def forget(self) -> None:
        """Drop the matrices; they are computed again when needed. Singular values stay."""
        for cache in (self._bases, self._grams, self._projections, self._residuals):
            cache.clear()

    def _shape(self, groups: int, folding: int) -> tuple[int, int]:
        """R and N of a slice."""
        features, channels, *kernel = self._weight.shape
        encoder, decoder = split_kernel(tuple(kernel), folding)
        return features // self._blocks * math.prod(decoder), channels // groups * math.prod(encoder)

    def _is_wide(self, groups: int, folding: int) -> bool:
        rows, columns = self._shape(groups, folding)
        return rows <= columns

    def _slices(self, groups: int, folding: int, weight: Tensor | None = None) -> Tensor:
        weight = self._weight if weight is None else weight
        weight = weight.cpu() if weight.device.type == "mps" else weight  # mps has no float64
        return fold(weight.to(torch.float64, copy=True).div_(self._scale), groups, folding, self._blocks)

    def _small_gram(self, groups: int, folding: int) -> Tensor:
        """A A^T of every slice, or A^T A where that is smaller: (G, S, S)."""
        if groups == 1 and folding in self._grams:
            return self._grams[folding]
        if groups == 1 and self._is_wide(1, folding):  # in parts: all of the weight in float64 takes twice its memory
            size = max(1, COLUMNS * self._weight.shape[1] // max(1, self._weight.numel()))
            parts = (self._slices(1, folding, part) for part in torch.split(self._weight, size, 1))
            return reduce(torch.add, (A_ORN @ A_ORN.mT for A_ORN in parts))
        A_GRN = self._slices(groups, folding)
        return A_GRN @ A_GRN.mT if self._is_wide(groups, folding) else A_GRN.mT @ A_GRN

    def _related_gram(self, groups: int, folding: int, grams: Mapping[int, Tensor]) -> Tensor:
        """`_small_gram`, derived from those of other numbers of groups where possible.

        A A^T of a slice is the sum over its finer slices; A^T A of a finer slice is a block on its diagonal.
        """
        wide = self._is_wide(groups, folding)
        alike = [g for g in grams if self._is_wide(g, folding) == wide]
        if wide and (finer := min((g for g in alike if g % groups == 0), default=None)):
            return grams[finer].reshape(-1, finer // groups, *grams[finer].shape[1:]).sum(1)
        if not wide and (coarser := max((g for g in alike if groups % g == 0), default=None)):
            parts, side = groups // coarser, grams[coarser].shape[1]
            # `fold` puts the encoder's kernel axes before the channels
            outer = math.prod(split_kernel(tuple(self._weight.shape[2:]), folding)[0]) if folding else 1
            squares = grams[coarser].reshape(-1, *2 * [outer, parts, side // (outer * parts)])
            return squares.diagonal(dim1=2, dim2=5).movedim(-1, 1).reshape(-1, *2 * [side // parts])
        return self._small_gram(groups, folding)

    def _basis(self, groups: int, folding: int) -> Tensor:
        """Singular vectors of the slices' smaller side by falling singular value: (G, S, S)."""
        slicing = (groups, folding)
        if slicing not in self._bases:
            self._bases[slicing] = torch.linalg.eigh(self._small_gram(groups, folding))[1].flip(-1)
        return self._bases[slicing]

    def _projection(self, groups: int, folding: int) -> Tensor:
        """The slices on that basis: B^T A, (G, S, N), of wide ones, A B, (G, R, S), of others."""
        slicing = (groups, folding)
        if slicing not in self._projections:
            A_GRN, B_GSS = self._slices(groups, folding), self._basis(groups, folding)
            self._projections = {slicing: B_GSS.mT @ A_GRN if self._is_wide(groups, folding) else A_GRN @ B_GSS}
        return self._projections[slicing]

    def _residual(self, groups: int, folding: int) -> list[Residual]:
        """The residual of every block."""
        slicing = (groups, folding)
        if slicing not in self._residuals:
            grams: Sequence[Tensor | None] = [None] * self._blocks
            if self._is_wide(1, folding):
                self._grams[folding] = self._small_gram(1, folding)
                grams = list(self._grams[folding])
            wide = self._is_wide(groups, folding)
            vectors = self._basis(groups, folding) if wide else self._projection(groups, folding)
            values = torch.from_numpy(self._values[slicing] / self._scale).to(vectors)
            pairs = zip(torch.split(vectors, groups), torch.split(values, groups), grams, strict=True)
            self._residuals = {slicing: [Residual(own, s if wide else None, gram) for own, s, gram in pairs]}
        return self._residuals[slicing]


_TINY = 1e-150  # avoids division by zero; smaller roots of singular values are zero


def reference_errors(spectra: Spectra, groups: int, folding: int = 0) -> Floats:
    """max over slices of sigma_{j+1}, over the layer's sigma_1, for ranks j = 1 to `top_rank`, falling (to 0 at S).

    A lower bound of the operator-norm error; times sqrt(groups), an upper bound.
    """
    largest, norm = spectra.values(groups, folding).max(axis=0), spectra.norm(folding)
    errors: Floats = np.append(largest[1:], 0.0)[: spectra.top_rank(groups, folding)] / (norm or 1.0)
    return errors


def bound_errors(spectra: Spectra, groups: int, folding: int = 0) -> Floats:
    """`reference_errors` times sqrt(groups): an upper bound of the operator-norm error."""
    errors: Floats = reference_errors(spectra, groups, folding) * groups**0.5
    return errors


def energy_errors(spectra: Spectra, groups: int = 1, folding: int = 0) -> Floats:
    """Share of the slices' squared singular values beyond rank j, for ranks 1 to `top_rank`, falling (to 0 at S)."""
    shares = _tail_shares(spectra.values(groups, folding) ** 2, spectra.unseen_energy(groups, folding))
    return shares[: spectra.top_rank(groups, folding)]


def lost_energies(spectra: Spectra, groups: int = 1, folding: int = 0) -> Floats:
    """The sum of the slices' squared singular values beyond rank j, for ranks 1 to `top_rank`, falling (to 0 at S)."""
    tail = _tails(spectra.values(groups, folding) ** 2, spectra.unseen_energy(groups, folding))
    return tail[: spectra.top_rank(groups, folding)]


def nuclear_errors(spectra: Spectra, groups: int = 1, folding: int = 0) -> Floats:
    """Share of the slices' singular values beyond rank j, for ranks j = 1 to S: (S,), falling to 0.

    Raises: CompressionError: not all singular values are known. ||W||_F gives the sum of squares of the others, but
        their sum only within a factor of sqrt(S).
    """
    values, full = spectra.values(groups, folding), spectra.full_rank(groups, folding)
    if values.shape[1] < full:
        raise CompressionError(
            f"the nuclear norm needs all {full:,} singular values of a slice. Got the {values.shape[1]:,} largest from "
            f"randomised SVD. Remove randomised_above, or use SVD-Energy."
        )
    return _tail_shares(values)


def _tail_shares(values_GK: Floats, unseen: float = 0.0) -> Floats:
    total: float = (values_GK.sum(axis=0).sum() + unseen) or 1.0
    shares: Floats = _tails(values_GK, unseen) / total
    return shares


def _tails(values_GK: Floats, unseen: float) -> Floats:
    tails: Floats = np.append(np.cumsum(values_GK.sum(axis=0)[::-1])[::-1][1:], 0.0) + unseen
    return tails
