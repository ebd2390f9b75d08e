"""Messi: the columns of every layer's weight, assigned to the nearest of several subspaces.

Shape suffixes: N = columns of the folded weight (the points), F = filters (the dimensions of the points), K =
subspaces, J = dimensions of each, O = groups of the layer itself, each with points and subspaces of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment import random_streams
from experiment.layers.build import write_whole
from experiment.layers.compressible import filters_of, groups_of, weight_of
from experiment.layers.factored_layers import fold, max_rank, write_factors
from experiment.layers.plan import Factors, Plan, State
from experiment.methods.allocate import common_threshold
from experiment.methods.base import Budget, Calibration
from experiment.methods.data.responses import precise
from experiment.methods.lowrank.base import LowRankLayers, lowrank_layers
from experiment.methods.lowrank.settings import MessiSettings
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.methods.lowrank.svd import shares_left
from experiment.methods.starting_state import factored_layers, live_filters, parameter_name

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clustering:
    """Which columns of a layer's folded weight share a subspace.

    Attributes:
        members: (O, K, N), True where a column belongs to a subspace; each belongs to one.
        error: ||W - What||_F / ||W||_F.
        exact_error: ||W - What||_2 / ||W||_2.
    """

    members: Tensor
    error: float
    exact_error: float


class MessiAnalysis:
    """The thresholds of the ranks, which do not depend on the weights, and a cache of clusterings.

    Attributes:
        thresholds: one value per option of every layer, 0 for the last option, the unchanged layer.
        clusterings: (layer name, rank) -> its clustering, computed by `clustering` when first needed.
    """

    def __init__(self, base: LowRankLayers, thresholds: Sequence[Floats], settings: MessiSettings, seed: int) -> None:
        self.base, self.thresholds = base, thresholds
        self.clusterings: dict[tuple[str, int], Clustering] = {}
        self._settings, self._seed = settings, seed

    def clustering(self, name: str, rank: int) -> Clustering:
        """A layer's clustering into subspaces of this rank."""
        if (name, rank) not in self.clusterings:
            filters = live_filters(self.base.start.network, self.base.start.masks, name)
            stream = random_streams.generator("messi", self._seed, name, rank)
            W_OFN = fold(precise(filters), blocks=self.base.start.layers[name].groups)
            members, residuals, groups = [], [], self._settings.groups
            for W_FN in W_OFN:
                owner_N = assign_columns(
                    W_FN.T, groups, rank, stream, self._settings.starts, self._settings.alternations
                )
                members.append(owner_N == torch.arange(groups, device=owner_N.device)[:, None])
                U_FKJ, V_KJN = subspace_factors(W_FN, members[-1], rank)
                residuals.append(W_FN - U_FKJ.flatten(1) @ V_KJN.flatten(0, 1))
            residual, weight, blocks = torch.cat(residuals), W_OFN.flatten(0, 1), len(W_OFN)
            self.clusterings[name, rank] = Clustering(
                torch.stack(members),
                float(residual.norm()) / (float(weight.norm()) or 1.0),
                LayerSpectra(residual, blocks).norm() / (LayerSpectra(weight, blocks).norm() or 1.0),
            )
        return self.clusterings[name, rank]

    def encoder_mask(self, name: str, rank: int) -> Tensor:
        """Which weights of the encoder exist, J in every column, in the shape of its weight."""
        layer = self.base.start.network.get_submodule(name)
        shape = filters_of(layer, layer.get_parameter("weight")).shape
        members = self.clustering(name, rank).members.repeat_interleave(rank, dim=1).reshape(-1, *shape[1:])
        return weight_of(layer, members)  # an encoder has the layout of its layer


@dataclass(frozen=True)
class Messi:
    """The N columns of W become points in K subspaces of J dimensions: W = [.. U_z V_z ..] up to a permutation.

    min over subspaces z of sum_n min_z ||w_n - P_z w_n||^2, by alternating between the assignment of columns and the
    subspaces' truncated SVDs, from several random partitions. Whatever the partition, this error is at most that of
    one truncated SVD of rank J. A column of the encoder has J weights, those of its subspace; the others are masked.
    That makes J (N + K F) weights in all, as with K groups of channels, but the groups are arbitrary columns.

    The rank of every layer is round(t * full), at least 1, with full = min(F, N / K) and the largest t that the budget
    allows. `relative_error` is in the Frobenius norm.

    Source: Maalouf et al. 2020, https://arxiv.org/abs/2010.04290
    """

    settings: MessiSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> MessiAnalysis:
        groups = self.settings.groups  # tied layers would need one mask in two layouts
        base = lowrank_layers(state, lambda info: [] if info.tied else [(groups, 0)], chosen=self.settings)
        thresholds = [
            np.append(shares_left(max_rank(info, self.settings.groups))[options.ranks[:-1] - 1], 0.0)
            for info, options in base.pairs()
        ]
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return MessiAnalysis(base, thresholds, self.settings, seed)

    def plan(self, analysis: MessiAnalysis, budget: Budget) -> Plan:
        """The ranks under the largest t that the budget allows; the columns are assigned here, for these ranks."""
        base = analysis.base
        chosen = base.choose(budget, partial(common_threshold, analysis.thresholds))
        if chosen is None:
            return base.plan(None, [])
        errors = [np.zeros(len(options.ranks)) for options in base.options.values()]
        for (name, options), index, error in zip(base.options.items(), chosen, errors, strict=True):
            if options.ranks[index]:
                error[index] = analysis.clustering(name, int(options.ranks[index])).error
        grouped = base.plan(chosen, errors, lambda name, f: analysis.clustering(name, f.rank).exact_error)
        masks = {_encoder_weight(name): analysis.encoder_mask(name, f.rank) for name, f in grouped.factors.items()}
        stitched = {name: Factors(f.groups * f.rank, 1, 0, f.bias) for name, f in grouped.factors.items()}
        return replace(grouped, factors=stitched, masks={**grouped.masks, **masks})

    def fill(self, built: nn.Module, state: State, analysis: MessiAnalysis, plan: Plan) -> None:
        """Write the truncated SVDs of the columns of each subspace into `built`, in place."""
        write_whole(built, state.network, plan)
        for name, layer, filters in factored_layers(state, plan):
            num = plan.factors[name].rank // self.settings.groups
            W_OFN = fold(precise(filters), blocks=groups_of(layer))
            members = filters_of(layer, plan.masks[_encoder_weight(name)]).flatten(1)[::num]
            pairs = zip(W_OFN, torch.split(members, self.settings.groups), strict=True)
            factors = [subspace_factors(W_FN, members_KN, num) for W_FN, members_KN in pairs]
            U_OFL, V_OLN = (
                torch.stack([U.flatten(1) for U, _ in factors]),
                torch.stack([V.flatten(0, 1) for _, V in factors]),
            )
            write_factors(built.get_submodule(name), U_OFL, V_OLN)


def assign_columns(
    A_NF: Tensor, num_subspaces: int, rank: int, generator: torch.Generator, starts: int = 5, alternations: int = 5
) -> Tensor:
    """The subspace of every point, so that subspaces of this rank through the origin are close to their points.

    Args:
        A_NF: points, float64.
        generator: draws the random partitions, on the CPU.
    Returns: (N,), the index of the subspace; a subspace may have no points.
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


def subspace_factors(W_FN: Tensor, members_KN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The truncated SVD of each subspace's columns, with zeros at the columns of the others.

    Returns: U (F, K, J) and V (K, J, N), zero-padded for subspaces with fewer than J columns.
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
    """The best subspaces for their points (unchanged without points), and the sum of squares that they capture.

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
    """The subspace with the smallest ||a||^2 - ||V_z a||^2 for every point: (N,)."""
    return torch.stack([(A_NF @ V_JF.T).square().sum(1) for V_JF in bases]).argmax(0)


def _encoder_weight(layer: str) -> str:
    return parameter_name(layer, "encoder.weight")
