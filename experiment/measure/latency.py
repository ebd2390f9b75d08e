"""Milliseconds of a forward pass on this device."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer


from experiment.inputs import Inputs, call_network, moved, take, tensors
from experiment.measure.counting import example_input
from experiment.registry import InputForm

Layout = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Latency:
    """The time of a forward pass.

    Attributes:
        batch: samples per batch.
        median_ms, iqr_ms: median and interquartile range, in milliseconds.
        layout: the faster memory layout of images and weights.
    """

    batch: int
    median_ms: float
    iqr_ms: float
    layout: Layout = "contiguous"


def measure_latency(
    network: nn.Module, inputs: Inputs | InputForm | tuple[int, ...], batch: int, threads: int, seconds: float = 0.5
) -> Latency:
    """Time forward passes of a network on its device, in float32 and inference mode.

    A network with convolutions is timed in both memory layouts, since the faster one depends on the network, the batch
    and the device.

    Args:
        network: in eval mode; it is unchanged. Masks that are not baked in are applied in every pass.
        inputs: a batch of inputs, whose first sample is repeated, or the shape of one sample.
        batch: samples per batch.
        threads: CPU threads.
        seconds: how long to measure in each layout.
    Returns: the time in the faster layout.
    """
    x = repeated(network, inputs, batch)
    times = [_timed(network, x, batch, threads, seconds, "contiguous")]
    if isinstance(x, Tensor) and x.dim() == 4 and any(p.dim() == 4 for p in network.parameters()):
        turned = copy.deepcopy(network).to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        times.append(_timed(turned, x, batch, threads, seconds, "channels_last"))
    return min(times, key=lambda latency: latency.median_ms)


def repeated(network: nn.Module, inputs: Inputs | InputForm | tuple[int, ...], batch: int) -> Inputs:
    """A batch on the network's device: the first sample of the inputs, or one of this shape, repeated."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return moved(take(inputs, [0] * batch), device) if tensors(inputs) else example_input(inputs, device, batch)


def _timed(network: nn.Module, x: Inputs, batch: int, threads: int, seconds: float, layout: Layout) -> Latency:
    with torch.inference_mode():
        timer = _timer()(
            "call(network, x)", globals={"call": call_network, "network": network, "x": x}, num_threads=threads
        )
        measured = timer.blocked_autorange(min_run_time=seconds)
    return Latency(batch, round(measured.median * 1e3, 5), round(measured.iqr * 1e3, 5), layout)


def _timer() -> type[Timer]:
    """torch's timer, imported without its warning about missing GPU compilers."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils.benchmark import Timer
    finally:
        logger.setLevel(level)
    return Timer
