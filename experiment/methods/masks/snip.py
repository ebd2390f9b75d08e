"""SNIP: the weights whose removal would change the loss most, to first order, on the calibration data."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, batch_size, call_network, device_of, moved_like, split
from experiment.layers.forward_pass import evaluating
from experiment.methods.base import Calibration
from experiment.methods.data.fisher import log_probabilities
from experiment.methods.masks.weight_ranking import WeightMethod, WeightScores, rank_weights
from experiment.methods.settings import NoSettings
from experiment.methods.starting_state import Start, live_weight

SAMPLES = 16  # in one pass
GIVE_TARGETS = "Pass them: compress(..., data=(inputs, targets)), or a loader of such pairs."


def snip(settings: NoSettings) -> WeightMethod:
    """Keeps the weights of largest connection sensitivity |w dL/dw| in the whole network; L is the mean cross entropy.

    dL/dw is the mean gradient over the calibration data, in eval mode, so that gradients of opposite sign cancel.

    Source: Lee et al. 2019, https://arxiv.org/abs/1810.02340. Differs: BatchNorm uses its running statistics, and the
    scores are those of the given weights, trained or not, where they prune at initialisation.
    """
    return WeightMethod(_scores, rank_weights)


def _scores(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
    return sensitivities(start, calibration) if start.layers else {}


def sensitivities(start: Start, calibration: Calibration | None) -> dict[str, Tensor]:
    """|mean over all predictions of w dL/dw| of every compressible layer's weight, in one pass over the data.

    Args:
        calibration: targets are class indices, one per sample or one per prediction (position) of the network.
    Raises: CompressionError: data or targets are missing or do not match, or the network returns no class scores.
    """
    inputs, targets = _checked(calibration, start)
    network = copy.deepcopy(start.network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    weights = {name: network.get_submodule(name).get_parameter("weight") for name in start.layers}
    for name, weight in weights.items():
        weight.copy_(live_weight(start.network, start.masks, name))  # without the values of masked elements
        weight.requires_grad_(True)
    sums = {name: torch.zeros_like(weight, dtype=_precise(weight)) for name, weight in weights.items()}
    predictions = 0
    with evaluating(network), torch.enable_grad():
        for batch, labels in zip(split(inputs, SAMPLES), torch.split(targets, SAMPLES), strict=True):
            losses = _losses(network, batch, labels)
            predictions += len(losses)
            gradients = torch.autograd.grad(losses.sum(), list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.to(sums[name]) * weight.detach()
    return {name: (total / predictions).abs() for name, total in sums.items()}


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _losses(network: nn.Module, batch: Inputs, labels: Tensor) -> Tensor:
    """The cross entropy of every prediction.

    Raises: CompressionError: outputs are no class scores, or labels are out of range.
    """
    scores = log_probabilities(call_network(network, batch))
    if labels.dim() == 1:
        labels = labels.repeat_interleave(len(scores) // batch_size(batch))  # one label for all positions of its sample
    labels = labels.flatten()
    if len(labels) != len(scores):
        raise CompressionError(
            f"SNIP: targets must be one class index per sample, or one per prediction. Got {len(labels)} targets for "
            f"{len(scores)} predictions of {batch_size(batch)} samples."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise CompressionError(
            f"SNIP: targets must be class indices from 0 to {scores.shape[1] - 1}, the network's outputs minus one. "
            f"Got {int(labels.min())} to {int(labels.max())}."
        )
    return nn.functional.nll_loss(scores, labels, reduction="none")


def _checked(calibration: Calibration | None, start: Start) -> tuple[Inputs, Tensor]:
    if calibration is None or not batch_size(calibration.inputs):
        raise CompressionError(f"SNIP needs calibration data with targets, a few hundred samples. {GIVE_TARGETS}")
    if calibration.targets is None:
        raise CompressionError(f"SNIP needs the targets of the calibration data. Got only inputs. {GIVE_TARGETS}")
    inputs, targets = calibration.inputs, calibration.targets
    if batch_size(inputs) != len(targets) or targets.is_floating_point():
        raise CompressionError(
            f"SNIP: targets must be one integer class index per sample. Got {batch_size(inputs)} inputs and targets of "
            f"shape {tuple(targets.shape)}, {targets.dtype}. {GIVE_TARGETS}"
        )
    example = start.state.example
    return moved_like(inputs, example), targets.to(device_of(example), torch.int64)
