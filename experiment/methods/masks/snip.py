"""SNIP: the weights whose removal would change the loss most, to first order, on the calibration data."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, batch_size, call_network, device_of, moved_like, split
from experiment.layers.forward_pass import evaluating
from experiment.methods.base import Calibration
from experiment.methods.data.fisher import log_probabilities, samples_at_once
from experiment.methods.masks.weight_ranking import WeightMethod, WeightScores, rank_weights
from experiment.methods.settings import NoSettings
from experiment.methods.starting_state import Start
from experiment.tasks.language_modelling import IGNORED

GIVE_TARGETS = "Pass them: compress(..., data=(inputs, targets)), or a loader of such pairs."


def snip(settings: NoSettings) -> WeightMethod:
    """Keeps the weights of largest connection sensitivity |w dL/dw| in the whole network; L is the mean cross entropy.

    dL/dw is the mean gradient over the calibration data, in eval mode, so that gradients of opposite sign cancel.

    Source: Lee et al. 2019, https://arxiv.org/abs/1810.02340. Differs: BatchNorm uses its running statistics, and the
    scores are those of the given weights, trained or not, where they prune at initialisation.
    """
    return WeightMethod(_scores, rank_weights)


def _scores(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
    return sensitivities(start, calibration) if start.weights else {}


def sensitivities(start: Start, calibration: Calibration | None) -> dict[str, Tensor]:
    """|mean over all predictions of w dL/dw| of every parameter in `Start.weights`, in one pass over the data.

    Args:
        calibration: targets are class indices, one per sample or one per prediction (position) of the network; those of
            -100 are ignored.
    Raises: CompressionError: data or targets are missing or do not match, or the network returns no class scores.
    """
    inputs, targets = _checked(calibration, start)
    weights = {name: start.live(name).detach().requires_grad_() for name in start.weights}  # the network's own memory
    fixed = {name: p.detach() for name, p in start.network.named_parameters() if name not in weights}
    sums = {name: torch.zeros_like(weight, dtype=_precise(weight)) for name, weight in weights.items()}

    def call(*args: Any, **named: Any) -> Any:
        return torch.func.functional_call(start.network, {**fixed, **weights}, args, named)

    for name, weight in weights.items():
        weight.register_post_accumulate_grad_hook(partial(_add, sums[name]))  # type: ignore[no-untyped-call]
    predictions = 0
    with evaluating(start.network), torch.enable_grad():
        at_once = samples_at_once(partial(call_network, call), [*fixed.values(), *weights.values()], inputs)
        for batch, labels in zip(split(inputs, at_once), torch.split(targets, at_once), strict=True):
            losses = _losses(call, batch, labels)
            predictions += len(losses)
            if losses.requires_grad:
                losses.sum().backward(inputs=list(weights.values()))  # type: ignore[no-untyped-call]
    return {name: total.div_(max(1, predictions)).abs_() for name, total in sums.items()}


def _add(total: Tensor, weight: Tensor) -> None:
    """Add w dL/dw to a sum, and forget the gradient."""
    if weight.grad is not None:
        total += weight.grad.to(total).mul_(weight.detach())
        weight.grad = None


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _losses(network: Callable[..., Any], batch: Inputs, labels: Tensor) -> Tensor:
    """The cross entropy of every prediction."""
    scores = log_probabilities(call_network(network, batch))
    if labels.dim() == 1:
        labels = labels.repeat_interleave(len(scores) // batch_size(batch))  # one label for all positions of its sample
    labels = labels.flatten()
    if len(labels) != len(scores):
        raise CompressionError(
            f"SNIP: targets must be one class index per sample, or one per prediction. Got {len(labels)} targets for "
            f"{len(scores)} predictions of {batch_size(batch)} samples."
        )
    counted = labels != IGNORED
    scores, labels = scores[counted], labels[counted]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise CompressionError(
            f"SNIP: targets must be class indices from 0 to {scores.shape[1] - 1}, the network's outputs minus one, or "
            f"{IGNORED} to ignore a prediction. Got {int(labels.min())} to {int(labels.max())}."
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
