"""What a network costs: parameters, multiply-adds and bytes, counted on the deployed network itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from experiment.layers.inspect import evaluating, trace_layers
from experiment.layers.masks import named_masks, plain_name
from experiment.layers.quantized import element_size, named_dtypes
from experiment.registry import InputShape

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer


@dataclass(frozen=True)
class LayerCount:
    """One convolution or linear layer: elements (bias included, masked ones not) and multiply-adds of one sample."""

    kind: str
    parameters: int
    flops: int
    flops_unmasked: int


@dataclass(frozen=True)
class Count:
    """A whole network.

    Attributes:
        parameters: elements of all parameters, BatchNorm and biases included, masked ones not; shared ones once.
        flops: multiply-adds of one sample's forward pass through every convolution and linear layer.
        flops_unmasked: the same over unmasked weights only.
        layers: the layers that the forward pass calls.
    """

    parameters: int
    flops: int
    flops_unmasked: int
    layers: Mapping[str, LayerCount]


def count(network: nn.Module, example: Tensor) -> Count:
    """Count a network as one forward pass of one sample uses it.

    What is neither convolution nor linear layer (normalisation, activation, pooling, attention) has no flops here.

    Args:
        network: any network, compressed or not; it is left as it is.
        example: an input batch, on the network's device; the values do not matter.
    """
    masks = named_masks(network)
    masked = sum(int((~mask).sum()) for mask in masks.values())
    layers = {}
    for name, info in trace_layers(network, example).items():
        prefix = f"{name}." if name else ""
        weight, bias = masks.get(f"{prefix}weight"), masks.get(f"{prefix}bias")
        unmasked = info.weight_numel if weight is None else int(weight.sum())
        biases = (info.out_features if bias is None else int(bias.sum())) if info.bias else 0
        layers[name] = LayerCount(
            info.kind, unmasked + biases, info.weight_numel * info.positions, unmasked * info.positions
        )
    layers |= _other_convolutions(network, example)
    return Count(
        parameters=sum(p.numel() for p in network.parameters()) - masked,
        flops=sum(layer.flops for layer in layers.values()),
        flops_unmasked=sum(layer.flops_unmasked for layer in layers.values()),
        layers=layers,
    )


_OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _other_convolutions(network: nn.Module, example: Tensor) -> dict[str, LayerCount]:
    """Convolutions that no method touches: a weight is used once an output position or, transposed, an input one."""
    names = {module: name for name, module in network.named_modules() if isinstance(module, _OTHER_CONVOLUTIONS)}
    if not names:
        return {}
    positions = dict.fromkeys(names.values(), 0)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, _OTHER_CONVOLUTIONS)
        grid = inputs[0] if module.transposed else output
        positions[names[module]] += grid.shape[-len(module.kernel_size) :].numel()

    handles = [module.register_forward_hook(record) for module in names]
    try:
        with evaluating(network):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: LayerCount("conv", sum(p.numel() for p in module.parameters()), flops, flops)
        for module, name in names.items()
        if (flops := module.weight.numel() * positions[name])
    }


@dataclass(frozen=True)
class Bytes:
    """Bytes of a network's parameters under three conventions, quantized ones with the bits that they need.

    int8 weights take a byte an element and, in every convention, four for the scale of each output channel.

    Attributes:
        dense: every element that the deployed tensors hold, masked or not; channels that are gone are not there.
        values: unmasked elements alone, no index: what Condensa reports, which counts those that are not zero.
        sparse: per tensor the smallest of dense, values + one bit an element, and values + 32-bit column indices and
            row pointers (CSR, one row an output).
    """

    dense: int
    values: int
    sparse: int


def count_bytes(network: nn.Module) -> Bytes:
    """Sizes of the parameters; buffers such as running statistics are not parameters and are left out."""
    dense = values = sparse = 0
    for sizes, masked in _tensor_bytes(network):
        dense += sizes["dense"]
        values += sizes["values"]
        sparse += min(sizes["dense"], sizes["bitmask"], sizes["csr"]) if masked else sizes["dense"]
    return Bytes(dense, values, sparse)


@dataclass(frozen=True)
class SparseBytes:
    """Bytes of a network's parameters with every masked tensor in one sparse format, the others dense.

    Attributes:
        bitmask: unmasked values and one bit an element.
        csr: unmasked values, 32-bit column indices and row pointers, one row an output.
        smallest: which of dense, bitmask and csr is the smallest.
    """

    bitmask: int
    csr: int
    smallest: str


def count_sparse_bytes(network: nn.Module) -> SparseBytes:
    """Sizes of the parameters in each sparse format; buffers are left out."""
    totals = {"dense": 0, "bitmask": 0, "csr": 0}
    for sizes, masked in _tensor_bytes(network):
        for name in totals:
            totals[name] += sizes[name] if masked else sizes["dense"]
    smallest = min(totals, key=lambda name: totals[name])  # of equals the simplest
    return SparseBytes(totals["bitmask"], totals["csr"], smallest)


def _tensor_bytes(network: nn.Module) -> Iterator[tuple[dict[str, int], bool]]:
    """Every parameter's bytes by format, and whether it is masked."""
    masks, dtypes = named_masks(network), named_dtypes(network)
    for name, parameter in network.named_parameters():
        mask, dtype = masks.get(plain_name(name)), dtypes.get(plain_name(name))
        size, total = parameter.element_size() if dtype is None else element_size(dtype), parameter.numel()
        kept = total if mask is None else int(mask.sum())
        rows = parameter.shape[0] if parameter.dim() > 0 else 1
        bitmask, csr = kept * size + (total + 7) // 8, kept * (size + 4) + (rows + 1) * 4
        sizes = {"dense": total * size, "values": kept * size, "bitmask": bitmask, "csr": csr}
        scales = rows * 4 if dtype == "int8" else 0
        yield {name: bytes_ + scales for name, bytes_ in sizes.items()}, mask is not None


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a forward pass of a batch takes: median and interquartile range."""

    batch: int
    median_ms: float
    iqr_ms: float


def measure_latency(
    network: nn.Module, input_shape: tuple[int, ...], batch: int, threads: int, seconds: float = 0.5
) -> Latency:
    """Time forward passes of a network as it is, on its own device, in float32 and inference mode.

    Args:
        network: in eval mode; masks that are not baked in are multiplied in every pass.
        threads: of the CPU.
        seconds: how long to measure; passes are timed in blocks long enough for the clock.
    """
    Timer = _timer()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = example_input(input_shape, device).expand(batch, *input_shape).contiguous()
    with torch.inference_mode():
        timer = Timer("network(x)", globals={"network": network, "x": x}, num_threads=threads)
        measured = timer.blocked_autorange(min_run_time=seconds)
    return Latency(batch, round(measured.median * 1e3, 5), round(measured.iqr * 1e3, 5))


def _timer() -> type[Timer]:
    """torch's timer, without its word on compilers for GPUs that are not there."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils.benchmark import Timer
    finally:
        logger.setLevel(level)
    return Timer


def example_input(input_shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """A batch of one deterministic input, such as (channels, height, width): values do not matter for counting."""
    if isinstance(input_shape, InputShape) and input_shape.tokens:
        return torch.zeros(1, *input_shape, dtype=torch.int64, device=device)
    return torch.linspace(-1, 1, int(torch.Size(input_shape).numel()), device=device).reshape(1, *input_shape)
