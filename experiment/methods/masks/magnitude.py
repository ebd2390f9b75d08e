"""Weights by magnitude, or at random."""

from collections.abc import Iterator

import torch
from torch import Tensor

from experiment.methods.base import Calibration
from experiment.methods.masks.selection import Chunks, Part, elementwise, in_chunks
from experiment.methods.masks.settings import WeightSettings
from experiment.methods.masks.weight_ranking import WeightMethod, WeightScores
from experiment.methods.starting_state import Start


def wt(settings: WeightSettings) -> WeightMethod:
    """Magnitude pruning: keeps the largest |w| of all matrices: layers, embeddings, raw parameters.

    Source: Han et al. 2015, https://arxiv.org/abs/1506.02626. Differs: one threshold for the network or, as `WT
    (layer)`, one share for all layers, found from the budget; they choose a threshold per layer from its sensitivity.
    """
    return WeightMethod(_magnitudes, settings)


def random_weights(settings: WeightSettings) -> WeightMethod:
    """Weights drawn at random: the baseline that any score must beat.

    Source: Blalock et al. 2020, What is the State of Neural Network Pruning?, https://arxiv.org/abs/2003.03033
    """
    return WeightMethod(_draws, settings)


def _magnitudes(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
    weights = {name: start.network.get_parameter(name) for name in start.weights}
    return {name: elementwise(weight, torch.abs) for name, weight in weights.items()}


def _draws(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
    """Uniform in [0, 1), in float64, so that ties (which network order would decide) hardly occur."""
    weights = {name: start.network.get_parameter(name) for name in start.weights}
    return {name: Part(_uniform(w, generator), w.shape, torch.float64, w.device) for name, w in weights.items()}


def _uniform(weight: Tensor, generator: torch.Generator) -> Chunks:
    """The generator's next numbers, drawn again whenever they are asked for, so that they take no memory."""
    before, sizes = generator.get_state(), [len(chunk) for chunk in in_chunks(weight)()]

    def draws(generator: torch.Generator) -> Iterator[Tensor]:
        for size in sizes:
            yield torch.rand(size, generator=generator, dtype=torch.float64).to(weight.device)

    for _ in draws(generator):  # so that the next weight takes the numbers that follow
        pass
    return lambda: draws(torch.Generator().set_state(before))
