"""Effective and stable rank of layers' weights, also of masked and decomposed layers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from experiment.layers.factored_layers import FactoredLayer, product
from experiment.layers.masks import bake_masks, named_masks

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerRank:
    """The ranks of one layer's weight as a matrix with one row per filter (folding 0); NaN if it is not finite.

    Attributes:
        full_rank: the smaller side, an upper bound of the others.
    """

    layer: str
    effective_rank: float
    stable_rank: float
    full_rank: int


def effective_rank(singular_values: ArrayLike) -> float:
    """exp(-sum_i p_i ln p_i), p_i = sigma_i / sum sigma, 0 ln 0 = 0: from 1 to the rank, 0 for a zero matrix.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality" (EUSIPCO)
    """
    sigma = _checked(singular_values)
    if not sigma.any():
        return 0.0
    p = sigma / sigma.max()  # the sum of very large values would overflow
    p = p[p > 0] / p.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def stable_rank(singular_values: ArrayLike) -> float:
    """||W||_F^2 / ||W||_2^2 = sum_i sigma_i^2 / sigma_1^2: from 1 to the rank, 0 for a zero matrix."""
    sigma = _checked(singular_values)
    return float(np.square(sigma / sigma.max()).sum()) if sigma.any() else 0.0


def layer_ranks(network: nn.Module) -> list[LayerRank]:
    """The ranks of every Conv2d and Linear layer, in module order.

    An encoder and decoder count as the layer that they replace; masked weights are zeros.

    Args:
        network: compressed or not, on any device; not modified.
    """
    if named_masks(network):
        network = bake_masks(network)
    weights: dict[str, Tensor] = {}
    inside: set[nn.Module] = set()  # of a factored layer
    for name, module in network.named_modules():
        if module in inside:
            continue
        if isinstance(module, FactoredLayer):
            weights[name] = product(module)
            inside.update(module.modules())
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weights[name] = module.weight.detach()
    return [_ranks(name, weight) for name, weight in weights.items()]


def _ranks(name: str, weight: Tensor) -> LayerRank:
    W_RN = (weight.cpu() if weight.device.type == "mps" else weight).double().flatten(1)  # mps has no float64
    full = min(W_RN.shape)
    if not bool(torch.isfinite(W_RN).all()):
        return LayerRank(name, float("nan"), float("nan"), full)
    sigma = torch.linalg.svdvals(W_RN).cpu().numpy()
    return LayerRank(name, effective_rank(sigma), stable_rank(sigma), full)


def _checked(singular_values: ArrayLike) -> Floats:
    sigma = np.asarray(singular_values, dtype=np.float64)
    if sigma.ndim != 1 or not np.isfinite(sigma).all() or (sigma < 0).any():
        raise ValueError("singular values must be a vector of finite numbers of at least 0.")
    return sigma
