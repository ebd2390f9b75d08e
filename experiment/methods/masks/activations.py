"""Weights by what their removal changes in the outputs of their own layer, on calibration data.

Suffixes: O = groups of the layer, F = filters of a group, N = columns: inputs of a filter times its kernel elements.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from experiment.layers.compensated_rounding import input_moments, inverse_root
from experiment.layers.compressible import CONVOLUTIONS, LINEAR_LAYERS, filters_of, weight_of
from experiment.layers.refit import double
from experiment.methods.base import Calibration, calibration_inputs
from experiment.methods.masks.settings import WeightSettings
from experiment.methods.masks.weight_ranking import WeightMethod, WeightScores
from experiment.methods.starting_state import Start, parameter_name
from experiment.progress import progress

MOMENTS = 2**25  # elements in float64 that are gathered in one pass
COLUMNS = 8192  # for more, the inverse of the moments takes too long: only their diagonal is used
Score = Callable[[Tensor, Tensor], Tensor]  # from filters (O, F, N) and the moments of their inputs (O, N, N)


def wanda(settings: WeightSettings) -> WeightMethod:
    """Keeps the weights of largest |w_j| ||x_j||_2, x_j the input of w_j; the same share of every filter.

    Source: Sun et al. 2024, A simple and effective pruning approach for large language models,
    https://arxiv.org/abs/2306.11695
    """
    return _from_moments(settings, "Wanda", lambda W_OFN, H_ONN: W_OFN.abs() * _diagonal(H_ONN).sqrt())


def obs(settings: WeightSettings) -> WeightMethod:
    """Keeps the weights of largest w_j^2 / [(X X^T + lambda)^-1]_jj; with `refit` the others make up for them.

    That is the change of the layer's outputs when one weight goes and the others of its filter are fitted.

    Source: Hassibi, Stork 1993, Optimal Brain Surgeon; Frantar, Alistarh 2023, SparseGPT,
    https://arxiv.org/abs/2301.00774. Differs: all weights are chosen at once, not in blocks of columns; the fit is by
    least squares, layer after layer; of filters with more than COLUMNS weights, the scores are w_j^2 ||x_j||^2.
    """

    def score(W_OFN: Tensor, H_ONN: Tensor) -> Tensor:
        if H_ONN.shape[-1] > COLUMNS:
            return W_OFN.square() * _diagonal(H_ONN)
        return W_OFN.square() / inverse_root(H_ONN).square().sum(1, keepdim=True)

    return _from_moments(settings, "SparseGPT", score)


def _from_moments(settings: WeightSettings, label: str, score: Score) -> WeightMethod:
    """A method that scores the weights of convolutions and linear layers; embeddings by the size of their weights."""

    def scores(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
        inputs = calibration_inputs(calibration, start.state, label)
        layers = {name: start.network.get_submodule(name) for name in start.layers}
        found = {name: start.live(parameter_name(name)).abs() for name in layers}
        own = [name for name, layer in layers.items() if isinstance(layer, (*CONVOLUTIONS, *LINEAR_LAYERS))]
        for part in progress(list(_parts(start, own)), "scores of weights, by part of the network"):
            moments = input_moments(start.network, part, inputs)
            for name in part:
                found[name] = _scored(layers[name], start.live(parameter_name(name)), moments.pop(name), score)
        return found

    return WeightMethod(scores, settings)


def _parts(start: Start, names: Sequence[str]) -> Iterator[list[str]]:
    """The layers in parts, so that the moments of one take 256 MiB, or those of one layer."""
    part, size = list[str](), 0
    for name in names:
        info = start.layers[name]
        own = info.groups * (info.weight_numel // info.out_features) ** 2
        if part and size + own > MOMENTS:
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    if part:
        yield part


def _scored(layer: nn.Module, weight: Tensor, H_ONN: Tensor, score: Score) -> Tensor:
    filters = filters_of(layer, weight)
    W_OFN = torch.unflatten(double(filters.flatten(1)), 0, (len(H_ONN), -1))
    return weight_of(layer, score(W_OFN, H_ONN).flatten(0, 1).reshape(filters.shape)).contiguous().to(weight.device)


def _diagonal(H_ONN: Tensor) -> Tensor:
    """(O, 1, N)."""
    return H_ONN.diagonal(dim1=1, dim2=2)[:, None]
