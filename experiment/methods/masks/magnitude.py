"""Weights by magnitude, or at random: in the whole network, or the same share of every layer."""

from __future__ import annotations

import torch

from experiment.methods.base import Calibration
from experiment.methods.masks.weight_ranking import WeightMethod, WeightScores, rank_weights, rank_within_layers
from experiment.methods.settings import NoSettings
from experiment.methods.starting_state import Start, live_weight


def wt(settings: NoSettings) -> WeightMethod:
    """Global magnitude pruning: keeps the largest |w| of all convolutions and linear layers.

    Source: Han et al. 2015, https://arxiv.org/abs/1506.02626
    """
    return WeightMethod(_magnitudes, rank_weights)


def wt_layer(settings: NoSettings) -> WeightMethod:
    """Layer-wise magnitude pruning: keeps the same share of every layer's weights, the largest ones.

    Source: Han et al. 2015, https://arxiv.org/abs/1506.02626. Differs: one share for all layers, found from the budget;
    they choose a threshold per layer from its sensitivity.
    """
    return WeightMethod(_magnitudes, rank_within_layers)


def random_weights(settings: NoSettings) -> WeightMethod:
    """Weights drawn at random from the whole network: the baseline that any score must beat.

    Source: Blalock et al. 2020, What is the State of Neural Network Pruning?, https://arxiv.org/abs/2003.03033
    """
    return WeightMethod(_draws, rank_weights)


def random_layer(settings: NoSettings) -> WeightMethod:
    """Weights drawn at random, the same share of every layer."""
    return WeightMethod(_draws, rank_within_layers)


def _magnitudes(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
    return {name: live_weight(start.network, start.masks, name).abs() for name in start.layers}


def _draws(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
    """Uniform in [0, 1), in float64, so that ties (which network order would decide) hardly occur."""
    weights = {name: start.network.get_submodule(name).get_parameter("weight") for name in start.layers}
    return {
        name: torch.rand(w.shape, generator=generator, dtype=torch.float64).to(w.device) for name, w in weights.items()
    }
