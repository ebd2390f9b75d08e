"""BatchNorm statistics of a compressed network, measured anew with the dense network as control variate.

Compression shifts what arrives at a BatchNorm, and its running statistics no longer belong to it. Those of a few images
in their stead are too noisy: they cost a mildly compressed network more than they mend. So the dense network sees the
same images, and only the change from its batch statistics (m_d, v_d) to those of the compressed network (m_c, v_c) is
applied to the running statistics, which come from the whole training data. What the sample misjudges, it misjudges in
both networks alike, and the difference is free of it: an unchanged network keeps its statistics.

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
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.plan import Kept

MOST_VALUES = 2**26  # that the largest input of a BatchNorm may have, all images together: 256 MiB in float32

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a BatchNorm's input, of a batch and as remembered from training: (C,), float64."""

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor

    def of(self, kept: Kept | None) -> Moments:
        """Those of the channels that stay."""
        indices = None if kept is None else kept.inputs if kept.out is None else kept.out
        if indices is None:
            return self
        places = torch.tensor(indices, device=self.mean.device)
        tensors = (self.mean, self.var, self.running_mean, self.running_var)
        return Moments(*(tensor[places] for tensor in tensors))


@dataclass(frozen=True)
class DenseMoments:
    """What `recalibrate` compares a compressed network with.

    Attributes:
        inputs: the images that both networks see, at once: as many of those given as memory bears.
        layers: BatchNorm name -> its moments in the dense network.
    """

    inputs: Tensor
    layers: Mapping[str, Moments]


def dense_moments(network: nn.Module, inputs: Tensor) -> DenseMoments:
    """The moments of every BatchNorm's input in the dense network.

    Left out are layers without running statistics and those that one forward pass calls more than once, or never. All
    images pass at once, which keeps `recalibrate` a single pass; so their number is limited where they are large, and
    of those given the first ones are taken.

    Args:
        network: with the running statistics that are to be corrected; not modified.
        inputs: images (N, ...), on its device.
    Raises: CompressionError: there is nothing to re-estimate, or the network gives NaN or infinite values.
    """
    calls = dict[str, int]()
    sizes = [1]

    def look(call: Call) -> None:
        calls[call.name] = calls.get(call.name, 0) + 1
        sizes.append(call.input.numel())

    _pass(network, inputs[:1], look)
    once = {name for name, number in calls.items() if number == 1}
    if not once:
        raise CompressionError(
            "recalibrate has no effect: the network has no BatchNorm layer with running statistics that a forward pass "
            "calls once. Remove it."
        )
    inputs = inputs[: max(1, MOST_VALUES // max(sizes))]
    moments = dict[str, Moments]()

    def record(call: Call) -> None:
        if call.name in once:
            moments[call.name] = Moments(*_batch_moments(call), *_running(call.module))

    _pass(network, inputs, record)
    return DenseMoments(inputs, moments)


def recalibrate(compressed: nn.Module, dense: DenseMoments, kept: Mapping[str, Kept]) -> None:
    """Correct the running statistics of a compressed network, in place, for what its BatchNorms are now given.

    Each layer's statistics are taken with those of all layers before it already corrected. Weights, biases and what
    `dense` leaves out stay as they are.

    Args:
        compressed: has the names of the dense network's modules.
        dense: of the network that was compressed, with its weights and statistics.
        kept: module name -> the channels that stay, as in the plan.
    Raises: CompressionError: the compressed network gives NaN or infinite values.
    """

    def correct(call: Call) -> None:
        if call.name not in dense.layers:
            return
        norm, d = call.module, dense.layers[call.name].of(kept.get(call.name))
        assert isinstance(norm, Norm)
        mean_C, var_C = _batch_moments(call)
        change_C = (var_C + norm.eps) / (d.var + norm.eps)
        norm.get_buffer("running_mean").copy_(d.running_mean + (mean_C - d.mean))
        # eps on both sides: a channel that was constant in training has a variance of 0, which no factor could change
        norm.get_buffer("running_var").copy_(((d.running_var + norm.eps) * change_C - norm.eps).clamp_min(0))

    _pass(compressed, dense.inputs, correct)


def _pass(network: nn.Module, inputs: Tensor, before: Callable[[Call], None]) -> None:
    """One forward pass in eval mode, in which `before` sees the input of each BatchNorm before that computes."""
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


def _running(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
