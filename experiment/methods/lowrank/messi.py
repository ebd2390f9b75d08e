"""Messi: several subspaces a layer, among which the weights of its inputs are shared out, each to the nearest.

Shape suffixes: N = columns of the folded weight, one an input weight (the points), F = filters (where they lie), K =
subspaces, J = dimensions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment import random_streams
from experiment.layers.build import write_whole
from experiment.layers.factored_layers import fold, max_rank, write_factors
from experiment.layers.plan import Factors, Plan, State
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration
from experiment.methods.data.responses import precise
from experiment.methods.lowrank import layer_options
from experiment.methods.lowrank.layer_options import LowRank
from experiment.methods.lowrank.settings import MessiSettings
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.methods.lowrank.svd import shares_left
from experiment.methods.starting_state import factored_layers, live_weight, parameter_name

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clustering:
    """Which columns of a layer's folded weight share a subspace.

    Attributes:
        members: (K, N), True where a column belongs to a subspace; each belongs to one.
        error: ||W - What||_F / ||W||_F.
        exact_error: ||W - What||_2 / ||W||_2.
    """

    members: Tensor
    error: float
    exact_error: float


@dataclass(frozen=True)
class Analysis:
    """What ranks follow from, and the clusterings found so far.

    Attributes:
        thresholds: for every layer one value an option, 0 for the last one, the layer as it is.
        seed: of all random partitions, with the layer's name and rank.
        found: (layer name, rank) -> its clustering, made when first asked for.
    """

    base: LowRank
    thresholds: Sequence[Floats]
    seed: int
    found: dict[tuple[str, int], Clustering] = field(default_factory=dict)


@dataclass(frozen=True)
class Messi:
    """The N columns of W become points of K subspaces of J dimensions: W = [.. U_z V_z ..] up to a permutation.

    min over subspaces z of sum_n min_z ||w_n - P_z w_n||^2, by alternating between the assignment of columns and the
    subspaces' truncated SVDs, from several random partitions. Whatever the partition, this error is at most that of
    one truncated SVD of rank J. A column of the encoder has J weights, those of its subspace, and the others are
    masked: J (N + K F) weights in all, as for K groups of channels, but the groups are any columns.

    The rank of every layer is round(t * full), at least 1, with full = min(F, N / K) and the largest t that the budget
    allows. `relative_error` is in the Frobenius norm.

    Source: Maalouf et al. 2020, https://arxiv.org/abs/2010.04290
    """

    settings: MessiSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Analysis:
        """The layers' options; what depends on ranks is left to `plan`."""
        base = layer_options.analyse(state, lambda info: [(self.settings.groups, 0)], layers=self.settings.layers)
        thresholds = [
            np.append(shares_left(max_rank(info, self.settings.groups))[options.ranks[:-1] - 1], 0.0)
            for info, options in base.pairs()
        ]
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return Analysis(base, thresholds, seed)

    def plan(self, analysis: Analysis, budget: Budget) -> Plan:
        """The largest t that the budget allows; the columns are shared out here, for the ranks that it gives.

        Raises: InfeasibleBudget: the smallest rank everywhere is still too much.
        """
        base = analysis.base
        if base.start.allows(budget):
            return layer_options.unchanged(base)
        chosen = common_threshold(analysis.thresholds, base.costs(budget.quantity), base.limit(budget))
        errors = [np.zeros(len(options.ranks)) for options in base.options.values()]
        for (name, options), index, error in zip(base.options.items(), chosen, errors, strict=True):
            if options.ranks[index]:
                error[index] = self._clustering(analysis, name, int(options.ranks[index])).error
        grouped = layer_options.make_plan(
            base, chosen, errors, lambda name, factors: self._clustering(analysis, name, factors.rank).exact_error
        )
        masks = {
            _encoder_weight(name): self._mask(analysis, name, factors.rank) for name, factors in grouped.factors.items()
        }
        stitched = {name: Factors(f.groups * f.rank, 1, 0, f.bias) for name, f in grouped.factors.items()}
        return replace(grouped, factors=stitched, masks={**grouped.masks, **masks})

    def fill(self, built: nn.Module, state: State, analysis: Analysis, plan: Plan) -> None:
        """Write the state's weights into `built`, in place: the truncated SVDs of the columns that share a subspace."""
        write_whole(built, state.network, plan)
        for name, _, weight in factored_layers(state, plan):
            num = plan.factors[name].rank // self.settings.groups
            members_KN = plan.masks[_encoder_weight(name)].flatten(1)[::num]
            U_FKJ, V_KJN = stitch(fold(precise(weight))[0], members_KN, num)
            write_factors(built.get_submodule(name), U_FKJ.flatten(1)[None], V_KJN.flatten(0, 1)[None])

    def _clustering(self, analysis: Analysis, name: str, rank: int) -> Clustering:
        if (name, rank) not in analysis.found:
            weight = live_weight(analysis.base.start.network, analysis.base.start.masks, name)
            stream = random_streams.generator("messi", analysis.seed, name, rank)
            A_NF, settings = fold(precise(weight))[0].T, self.settings
            owner_N = share_out(A_NF, settings.groups, rank, stream, settings.starts, settings.alternations)
            members_KN = owner_N == torch.arange(settings.groups, device=owner_N.device)[:, None]
            U_FKJ, V_KJN = stitch(A_NF.T, members_KN, rank)
            residual = A_NF.T - U_FKJ.flatten(1) @ V_KJN.flatten(0, 1)
            analysis.found[name, rank] = Clustering(
                members_KN,
                float(residual.norm()) / (float(A_NF.norm()) or 1.0),
                LayerSpectra(residual).norm() / (LayerSpectra(A_NF.T).norm() or 1.0),
            )
        return analysis.found[name, rank]

    def _mask(self, analysis: Analysis, name: str, rank: int) -> Tensor:
        """The encoder's weights that are there: (K * J, C, X, Y) or (K * J, C), J in every column."""
        members_KN = self._clustering(analysis, name, rank).members
        shape = analysis.base.start.network.get_submodule(name).get_parameter("weight").shape
        return members_KN.repeat_interleave(rank, dim=0).reshape(-1, *shape[1:])


def share_out(
    A_NF: Tensor, num_subspaces: int, rank: int, generator: torch.Generator, starts: int = 5, alternations: int = 5
) -> Tensor:
    """The subspace of every point, such that subspaces of this rank through the origin come close to their points.

    Args:
        A_NF: points, float64.
        generator: of the random partitions, on the CPU.
    Returns: (N,), the number of the subspace, from 0 on; one may have no points.
    """
    best_N, most = torch.zeros(len(A_NF), dtype=torch.int64, device=A_NF.device), -1.0
    for _ in range(starts):
        owner_N = torch.randperm(len(A_NF), generator=generator).to(A_NF.device) % num_subspaces
        bases, captured = _fit(A_NF, owner_N, [A_NF[:0]] * num_subspaces, rank)
        for _ in range(alternations):
            nearest_N = _nearest(A_NF, bases)
            if torch.equal(nearest_N, owner_N):
                break
            owner_N = nearest_N
            bases, captured = _fit(A_NF, owner_N, bases, rank)
        if captured > most:
            best_N, most = owner_N, captured
    return best_N


def stitch(W_FN: Tensor, members_KN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Every subspace's truncated SVD of its own columns, with zeros at the columns of others.

    Returns: U (F, K, J) and V (K, J, N); a subspace of fewer than J columns has zeros for what is missing.
    """
    U_FKJ = W_FN.new_zeros(len(W_FN), len(members_KN), rank)
    V_KJN = W_FN.new_zeros(len(members_KN), rank, W_FN.shape[1])
    for z, member_N in enumerate(members_KN.to(W_FN.device)):
        if member_N.any():
            U_1FJ, V_1JM = LayerSpectra(W_FN[:, member_N]).factors(rank)
            U_FKJ[:, z, : U_1FJ.shape[2]] = U_1FJ[0]
            V_KJN[z, : V_1JM.shape[1], member_N] = V_1JM[0]
    return U_FKJ, V_KJN


def _fit(A_NF: Tensor, owner_N: Tensor, bases: Sequence[Tensor], rank: int) -> tuple[list[Tensor], float]:
    """The subspaces nearest to their points, the old ones where they have none, and the sum of squares that they hold.

    The basis of a subspace is (at most J, F), orthonormal: the first right singular vectors of its points.
    """
    fitted, captured = list(bases), 0.0
    for z in range(len(bases)):
        A_MF = A_NF[owner_N == z]
        if len(A_MF) == 0:
            continue
        if len(A_MF) >= A_MF.shape[1]:
            squares, vectors = torch.linalg.eigh(A_MF.T @ A_MF)
            fitted[z] = vectors[:, -rank:].T
        else:  # the other side's Gram matrix is smaller
            squares, vectors = torch.linalg.eigh(A_MF @ A_MF.T)
            fitted[z] = torch.linalg.qr(A_MF.T @ vectors[:, -rank:].flip(-1))[0].T
        captured += float(squares[-rank:].sum())
    return fitted, captured


def _nearest(A_NF: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """The subspace of least ||a||^2 - ||V_z a||^2 for every point: (N,)."""
    return torch.stack([(A_NF @ V_JF.T).square().sum(1) for V_JF in bases]).argmax(0)


def _encoder_weight(layer: str) -> str:
    return parameter_name(layer, "encoder.weight")
