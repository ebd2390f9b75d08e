"""Re-estimates a compressed network's BatchNorm statistics, with the dense network as control variate.

Compression shifts the input of a BatchNorm, so that its running statistics no longer match. Statistics of a few images
alone are too noisy: they harm a mildly compressed network. Therefore the dense network processes the same images, and
only the change from its batch statistics (m_d, v_d) to those of the compressed network (m_c, v_c) is applied to the
running statistics, which come from all training data. Sampling errors that both networks share cancel: an unchanged
network keeps its statistics.

    mean <- mean + (m_c - m_d)
    var + eps <- (var + eps) (v_c + eps) / (v_d + eps)

Suffix: C = channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, first
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.plan import Kept

MOST_VALUES = 2**26  # elements of a BatchNorm's input for all images: 256 MiB in float32

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a BatchNorm's input in a batch, and its running statistics: (C,), float64."""

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor

    def of(self, kept: Kept | None) -> Moments:
        """The moments of the channels that stay."""
        indices = None if kept is None else kept.inputs if kept.out is None else kept.out
        if indices is None:
            return self
        places = torch.tensor(indices, device=self.mean.device)
        tensors = (self.mean, self.var, self.running_mean, self.running_var)
        return Moments(*(tensor[places] for tensor in tensors))


@dataclass(frozen=True)
class DenseMoments:
    """The dense network's moments, with which `recalibrate` compares those of a compressed network.

    Attributes:
        inputs: the images that both networks process in one batch: as many as fit into memory.
        layers: BatchNorm name -> its moments in the dense network.
    """

    inputs: Inputs
    layers: Mapping[str, Moments]


def dense_moments(network: nn.Module, inputs: Inputs) -> DenseMoments:
    """The moments of every BatchNorm's input in the dense network.

    Layers without running statistics, and those that a forward pass does not call exactly once, are left out. All
    images pass in one batch, so that `recalibrate` is a single pass; if they are large, only the first ones are used.

    Args:
        network: with the running statistics to correct; not modified.
        inputs: images (N, ...), on its device.
    Raises: CompressionError: there is nothing to re-estimate, or the network computes NaN or infinite values.
    """
    calls = dict[str, int]()
    sizes = [1]

    def look(call: Call) -> None:
        calls[call.name] = calls.get(call.name, 0) + 1
        sizes.append(call.input.numel())

    _pass(network, first(inputs), look)
    once = {name for name, number in calls.items() if number == 1}
    if not once:
        raise CompressionError(
            "recalibrate has no effect: the network has no BatchNorm layer with running statistics that a forward pass "
            "calls once. Remove this setting."
        )
    inputs = first(inputs, max(1, MOST_VALUES // max(sizes)))
    moments = dict[str, Moments]()

    def record(call: Call) -> None:
        if call.name in once:
            running = (call.module.get_buffer(name).double() for name in ("running_mean", "running_var"))
            moments[call.name] = Moments(*_batch_moments(call), *running)

    _pass(network, inputs, record)
    return DenseMoments(inputs, moments)


def recalibrate(compressed: nn.Module, dense: DenseMoments, kept: Mapping[str, Kept]) -> None:
    """Correct the running statistics of a compressed network for the new inputs of its BatchNorms, in place.

    Each layer is measured after all layers before it are corrected. Everything else stays unchanged.

    Args:
        compressed: with the module names of the dense network.
        dense: the moments of the network that was compressed.
        kept: module name -> the channels that stay, as in the plan.
    Raises: CompressionError: the compressed network computes NaN or infinite values.
    """

    def correct(call: Call) -> None:
        if call.name not in dense.layers:
            return
        norm, d = call.module, dense.layers[call.name].of(kept.get(call.name))
        assert isinstance(norm, Norm)
        mean_C, var_C = _batch_moments(call)
        change_C = (var_C + norm.eps) / (d.var + norm.eps)
        norm.get_buffer("running_mean").copy_(d.running_mean + (mean_C - d.mean))
        # eps on both sides: a factor could not change the variance 0 of a channel that was constant in training
        norm.get_buffer("running_var").copy_(((d.running_var + norm.eps) * change_C - norm.eps).clamp_min(0))

    _pass(compressed, dense.inputs, correct)


def _pass(network: nn.Module, inputs: Inputs, before: Callable[[Call], None]) -> None:
    """One forward pass in eval mode, in which `before` receives the input of each BatchNorm before it computes."""
    norms = {n: m for n, m in network.named_modules() if isinstance(m, Norm) and m.running_mean is not None}
    observed_pass(network, norms, inputs, before=before, keeping_buffers=False)


def _batch_moments(call: Call) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, over samples and positions."""
    x: Tensor = call.input
    others = [dim for dim in range(x.dim()) if dim != 1]
    var_C, mean_C = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), others, correction=0)
    if not (torch.isfinite(var_C).all() and torch.isfinite(mean_C).all()):
        raise CompressionError(
            f"recalibrate: '{call.name}' receives NaN or infinite values. Are the calibration data finite, and "
            f"transformed like the training data?"
        )
    return mean_C.double(), var_C.double()
