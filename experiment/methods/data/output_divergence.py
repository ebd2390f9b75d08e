"""The divergence of a network's predictions from those of the network before compression, on calibration data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, attended, call_network, first, split
from experiment.layers.forward_pass import evaluating
from experiment.layers.plan import State
from experiment.methods.base import Calibration, calibration_inputs
from experiment.methods.data.fisher import SAMPLES, log_probabilities

SCORES = 2**23  # of all predictions that are compared: 32 MiB


def comparable_inputs(calibration: Calibration | None, state: State, method: str) -> Inputs:
    """The calibration inputs for a method that compares predictions.

    Raises: CompressionError: there are none, or the targets are those of a regression.
    """
    inputs = calibration_inputs(calibration, state, method)
    targets = calibration.targets if calibration else None
    if targets is not None and targets.is_floating_point() and targets.dim() == 1:
        raise CompressionError(
            f"{method} compares the softmax of class scores. The targets are real numbers, as in a regression. Use a "
            f"method that compares layers instead, such as PCA or ALDS."
        )
    return inputs


def as_fit(network: nn.Module, inputs: Inputs, most: int) -> Inputs:
    """The first inputs, whose predictions fit into memory: a language model has one for every token."""
    each = predictions_of(network, first(inputs)).numel()
    return first(inputs, max(1, min(most, SCORES // max(1, each))))


def predictions_of(network: nn.Module, images: Inputs, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """The log-probabilities of all predictions, of the network with other weights where they are given."""

    def call(*args: Any, **named: Any) -> Any:
        return torch.func.functional_call(network, dict(weights or {}), args, named)

    with evaluating(network):
        batches = split(images, SAMPLES)
        return torch.cat([log_probabilities(call_network(call, batch), attended(batch)) for batch in batches])


def divergence(name: str, dense: Tensor, compressed: Tensor) -> float:
    """The mean of KL(p || q) over predictions, from the log-probabilities p and q, each (predictions, classes).

    Args:
        name: the layer that is compressed in q, for the error.
    Raises: CompressionError: it is NaN or infinite.
    """
    value = float((dense.exp() * (dense - compressed)).sum(1).mean())
    if not np.isfinite(value):
        raise CompressionError(
            f"layer '{name}': when it is compressed, the network's outputs on the calibration data are NaN or "
            f"infinite. Check that the data are transformed as for training, or use a method that does not compare "
            f"outputs, such as ALDS."
        )
    return value
