"""The largest singular values of one layer's slices by randomised SVD, for layers of many thousand features.

The time of an exact decomposition is proportional to the cube of a slice's smaller side; here it is its area times the
number of values. Everything is computed in float64, as for exact spectra.

Shape suffixes as in `experiment.layers.factored_layers`: G = groups, R = rows, N = columns of a slice, J = rank,
S = min(R, N), K = known singular values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from experiment.layers.factored_layers import Slicing, fold
from experiment.methods.lowrank import randomised_svd
from experiment.methods.lowrank.spectra import Floats, LayerSpectra
from experiment.random_streams import generator


@dataclass(frozen=True)
class Sketches:
    """A cache for all ranks of one weight and seed: sketches by slicing and columns, operator norms by folding.

    The numbers of columns are powers of two, so a sweep over ranks makes few sketches, and the same ones in any order.
    """

    made: dict[tuple[Slicing, int], randomised_svd.Sketch] = field(default_factory=dict)
    norms: dict[int, float] = field(default_factory=dict)


class RandomisedSpectra:
    """Like `LayerSpectra`, for ranks up to `max_rank`; slices whose smaller side is not longer are decomposed exactly.

    `values` has one more than `max_rank`, which gives the error at the largest rank.

    Args:
        weight: the filters (F, C, *kernel) of a layer without groups, finite; they must not change while this object is
            used.
        seed: seeds all Gaussians; those of a slicing do not depend on other slicings.
        oversampling: columns of the sketch in addition to the rank, at least 1.
        power_iterations: see `range_finder`.
        sketches: shared by objects with the same weight, seed and power iterations and different ranks.
    """

    def __init__(
        self,
        weight: Tensor,
        max_rank: int,
        seed: int,
        *,
        oversampling: int = randomised_svd.OVERSAMPLING,
        power_iterations: int = randomised_svd.POWER_ITERATIONS,
        sketches: Sketches | None = None,
    ) -> None:
        if max_rank < 1 or oversampling < 1:
            raise ValueError(f"max_rank and oversampling must be at least 1. Got {max_rank} and {oversampling}.")
        self._weight, self._max_rank, self._seed = weight.detach(), max_rank, seed
        self._oversampling, self._power_iterations = oversampling, power_iterations
        self._scale = (float(self._weight.abs().max()) if weight.numel() else 0.0) or 1.0
        self._exact = LayerSpectra(weight)  # for narrow slices
        self._values: dict[Slicing, Floats] = {}
        self._triplets: dict[Slicing, randomised_svd.TruncatedSVD] = {}
        self._norms: dict[int, float] = {} if sketches is None else sketches.norms
        self._errors: dict[tuple[int, int, int], Floats] = {}
        self._sketches = sketches
        self._residual: tuple[tuple[int, int, int], Tensor] | None = None

    def full_rank(self, groups: int = 1, folding: int = 0) -> int:
        """S, the largest possible rank of a slice; there are factors up to `top_rank` only."""
        return self._exact.full_rank(groups, folding)

    def top_rank(self, groups: int = 1, folding: int = 0) -> int:
        """The largest known rank: `max_rank`, or S."""
        return min(self._max_rank, self.full_rank(groups, folding))

    def values(self, groups: int = 1, folding: int = 0) -> Floats:
        """The largest singular values of every slice: (G, K), falling, K = min(S, max_rank + 1)."""
        if self._is_narrow(groups, folding):
            return self._exact.values(groups, folding)
        slicing = (groups, folding)
        if slicing not in self._values:  # vectors are much larger, and kept for chosen slicings only
            found = self._triplets.get(slicing) or self._decompose(groups, folding)
            self._values[slicing] = found.S.cpu().numpy() * self._scale
        return self._values[slicing]

    def prepare(self, all_groups: Sequence[int], folding: int = 0) -> None:
        """Compute `values` for several numbers of groups together; only narrow slices share work."""
        self._exact.prepare([groups for groups in all_groups if self._is_narrow(groups, folding)], folding)

    def unseen_energy(self, groups: int = 1, folding: int = 0) -> float:
        """The sum of the squared singular values that are missing in `values`: ||W||_F^2 minus those of `values`.

        For the factors of `factors` this is exact: ||A - Q B_J||_F^2 = ||A||_F^2 - ||B_J||_F^2, Q orthonormal.
        """
        if self._is_narrow(groups, folding):
            return 0.0
        whole = float((self._weight.double().cpu() / self._scale).square().sum()) * self._scale**2
        return max(0.0, whole - float(np.square(self.values(groups, folding)).sum()))

    def norm(self, folding: int = 0) -> float:
        """The operator norm of the whole folded weight."""
        if folding not in self._norms:
            whole = self._slices(1, folding)[0]
            self._norms[folding] = randomised_svd.operator_norm(whole, self._stream("norm", 1, folding)) * self._scale
        return self._norms[folding]

    def factors(self, rank: int, groups: int = 1, folding: int = 0) -> tuple[Tensor, Tensor]:
        """Near-optimal factors of every slice, A_g ~ U_g V_g, with the singular values shared equally between them.

        Returns: U (G, R, J) and V (G, J, N) in float64: U = L S^1/2, V = S^1/2 R^T.
        """
        if self._is_narrow(groups, folding):
            return self._exact.factors(rank, groups, folding)
        slicing = (groups, folding)
        if slicing not in self._triplets:
            self._triplets[slicing] = self._decompose(groups, folding)
        U, S, Vt = self._triplets[slicing]
        root_GJ = (S[:, :rank] * self._scale).sqrt()
        return U[:, :, :rank] * root_GJ[:, None, :], root_GJ[:, :, None] * Vt[:, :rank]

    def exact_error(self, rank: int, groups: int = 1, folding: int = 0) -> float:
        """||W - What||_2 / ||W||_2 for What of these factors, measured (`operator_norm`); 0 for a zero weight."""
        return float(self.exact_bounds(rank, groups, folding)[rank - 1])

    def exact_bounds(self, rank: int, groups: int = 1, folding: int = 0) -> Floats:
        """The measured error at `rank`, and lower bounds of the errors at all other ranks.

        With v the residual's first left singular vector at `rank`, the error at any rank is at least
        ||v^T (W - What)|| / ||W||_2, and equal to it at `rank`.

        Returns: lower bounds for ranks 1 to `top_rank`.
        """
        norm, key = self.norm(folding), (rank, groups, folding)
        if norm == 0:
            return np.zeros(self.top_rank(groups, folding))
        if key not in self._errors:
            A_GRN = self._slices(groups, folding) * self._scale
            U_GRJ, V_GJN = self.factors(self.top_rank(groups, folding), groups, folding)
            residual_GRN = self._left(rank, groups, folding)
            _, v_R = randomised_svd.leading_pair(_side_by_side(residual_GRN), self._stream("error", groups, folding))
            self._residual = None
            # the rows V_i are orthogonal: rank i adds a_i^2 ||V_i||^2 - 2 a_i <v^T A, V_i>, a = v^T U, to the square
            seen_GN, a_GJ = (torch.einsum("r,grm->gm", v_R, M) for M in (A_GRN, U_GRJ))
            added_GJ = a_GJ.square() * V_GJN.square().sum(2) - 2 * a_GJ * torch.einsum("gn,gjn->gj", seen_GN, V_GJN)
            squares_J = seen_GN.square().sum() + added_GJ.sum(0).cumsum(0)
            self._errors[key] = squares_J.clamp_min(0).sqrt().cpu().numpy() / norm
        return self._errors[key]

    def held(self) -> int:
        """Elements of the matrices that are cached and can be computed again soon."""
        return self._exact.held() + (0 if self._residual is None else self._residual[1].numel())

    def forget(self) -> None:
        """Drop them."""
        self._exact.forget()
        self._residual = None

    def error_bound(self, rank: int, groups: int = 1, folding: int = 0) -> float:
        """An upper bound of `exact_error` from products of the residual with ten random vectors (`norm_bound`)."""
        residual_GRN = self._left(rank, groups, folding)
        bound = randomised_svd.norm_bound(_side_by_side(residual_GRN), self._stream("probes", groups, folding))
        return bound / (self.norm(folding) or 1.0)

    def _left(self, rank: int, groups: int, folding: int) -> Tensor:
        """The residual of the slices at this rank: (G, R, N); the latest one is cached."""
        key = (rank, groups, folding)
        if self._residual is None or self._residual[0] != key:
            U_GRJ, V_GJN = self.factors(rank, groups, folding)
            self._residual = key, self._slices(groups, folding) * self._scale - U_GRJ @ V_GJN
        return self._residual[1]

    def _is_narrow(self, groups: int, folding: int) -> bool:
        return self.full_rank(groups, folding) <= self._max_rank

    def _decompose(self, groups: int, folding: int) -> randomised_svd.TruncatedSVD:
        """The K largest triplets of every slice, from a sketch of max_rank + oversampling columns."""
        A_GRN, most = self._slices(groups, folding), self.full_rank(groups, folding)
        size = min(self._max_rank + self._oversampling, most)
        if self._sketches is None:
            made = randomised_svd.sketch(A_GRN, size, self._power_iterations, self._stream("svd", groups, folding))
            return made.svd(size, self._max_rank + 1)
        columns = min(1 << (size - 1).bit_length(), most)
        key = (groups, folding), columns
        if key not in self._sketches.made:
            self._sketches.made[key] = randomised_svd.sketch(
                A_GRN, columns, self._power_iterations, self._stream("svd", groups, folding)
            )
        return self._sketches.made[key].svd(size, self._max_rank + 1)

    def _slices(self, groups: int, folding: int) -> Tensor:
        weight = self._weight.cpu() if self._weight.device.type == "mps" else self._weight  # mps has no float64
        return fold(weight.double() / self._scale, groups, folding)

    def _stream(self, purpose: str, groups: int, folding: int) -> torch.Generator:
        return generator("randomised", self._seed, purpose, groups, folding)


def _side_by_side(A_GRN: Tensor) -> Tensor:
    """The whole folded weight that slices are cut from, up to the order of its columns: (R, G N)."""
    return A_GRN.transpose(0, 1).flatten(1)
