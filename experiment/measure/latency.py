"""Milliseconds of a forward pass on this device."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement, Timer


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
    times = []
    for layout in layouts(network, x):
        found = timed(*arranged_in(layout, network, x), threads, seconds)
        times.append(Latency(batch, round(found.median * 1e3, 5), round(found.iqr * 1e3, 5), layout))
    return min(times, key=lambda latency: latency.median_ms)


def repeated(network: nn.Module, inputs: Inputs | InputForm | tuple[int, ...], batch: int) -> Inputs:
    """A batch on the network's device: the first sample of the inputs, or one of this shape, repeated."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return moved(take(inputs, [0] * batch), device) if tensors(inputs) else example_input(inputs, device, batch)


def layouts(network: nn.Module, x: Inputs) -> list[Layout]:
    """The memory layouts in which a network may be fast: two for one with convolutions on images."""
    images = isinstance(x, Tensor) and x.dim() == 4 and any(p.dim() == 4 for p in network.parameters())
    return ["contiguous", "channels_last"] if images else ["contiguous"]


def arranged_in(layout: Layout, network: nn.Module, x: Inputs) -> tuple[nn.Module, Inputs]:
    """A network and its inputs in a memory layout; the network is copied where its weights move."""
    if layout == "contiguous":
        return network, x
    assert isinstance(x, Tensor)
    return copy.deepcopy(network).to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def timed(network: nn.Module, x: Inputs, threads: int, seconds: float) -> Measurement:
    """The seconds of a forward pass in inference mode, measured for about so many seconds."""
    with torch.inference_mode():
        return _timer_of(network, x, threads).blocked_autorange(min_run_time=seconds)


def mean_seconds(network: Callable[..., Any], x: Inputs, threads: int, seconds: float) -> float:
    """The mean of forward passes for about so many seconds, which may be fewer than `timed` needs for a block."""
    with torch.inference_mode():
        timer = _timer_of(network, x, threads)
        return timer.timeit(max(1, round(seconds / timer.timeit(1).mean))).mean


def _timer_of(network: Callable[..., Any], x: Inputs, threads: int) -> Timer:
    names = {"call": call_network, "network": network, "x": x}
    return _timer()("call(network, x)", globals=names, num_threads=threads)


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
