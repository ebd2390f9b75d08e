"""What a network costs: parameters, multiply-adds and bytes, counted on the deployed network itself."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from experiment.layers.compressible import evaluating
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import named_masks, plain_name
from experiment.layers.prepare_network import unwrapped
from experiment.layers.quantized_weights import element_size, named_dtypes
from experiment.registry import InputShape

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer


@dataclass(frozen=True)
class LayerCount:
    """One convolution or linear layer: elements of its own (bias included, masked ones not) and multiply-adds.

    Elements that a layer before it holds as well count there alone, so that layers add up.
    """

    kind: str
    parameters: int
    flops: int
    flops_unmasked: int


@dataclass(frozen=True)
class Count:
    """A whole network.

    Attributes:
        parameters: elements of all parameters, BatchNorm and biases included, masked ones not; shared ones once.
        flops: multiply-adds of one sample's forward pass.
        flops_unmasked: the same without those of masked weights of layers.
        layers: the convolutions and linear layers that the forward pass calls, in module order.
        products: multiply-adds of each operation outside these layers, in the order in which they are computed:
            products of activations in attention, recurrent layers, `F.linear`.
    """

    parameters: int
    flops: int
    flops_unmasked: int
    layers: Mapping[str, LayerCount]
    products: tuple[int, ...] = ()

    @property
    def other_flops(self) -> int:
        """Multiply-adds outside the layers."""
        return sum(self.products)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVOLUTIONS, nn.Linear, GroupedLinear)


def count(network: nn.Module, example: Tensor) -> Count:
    """Count a network as one forward pass of one sample, the first of `example`, uses it.

    Multiply-adds are those of `torch.utils.flop_counter`, operation by operation: matrix products, convolutions of
    every kind and scaled dot products, in layers or outside of them, with everything that the network folds into the
    batch. Fused kernels that torch cannot look into (attention, LSTM, GRU) are counted as the products that they
    consist of. Nothing is counted for what works element by element (activations, normalisation, pooling), for products
    of a matrix with a single vector, `nn.Bilinear`, and operators of other libraries.

    Args:
        network: any network, compressed or not; it is left as it is. `torch.compile` and the like are taken off.
        example: an input batch, on the network's device; the values do not matter.
    """
    network = unwrapped(network)
    masks = named_masks(network)
    layer_flops, products = _count_flops(network, example[:1])
    layers, seen = {}, set[nn.Parameter]()
    for name, module in network.named_modules():
        if module in layer_flops:
            own = {f"{name}.{n}" if name else n: p for n, p in module.named_parameters() if p not in seen}
            seen.update(own.values())
            parameters = sum(_unmasked(p, masks.get(plain_name(n))) for n, p in own.items())
            mask, work = masks.get(f"{name}.weight" if name else "weight"), layer_flops[module]
            unmasked = work if mask is None else work * int(mask.sum()) // max(1, mask.numel())
            kind = "conv" if isinstance(module, _CONVOLUTIONS) else "linear"
            layers[name] = LayerCount(kind, parameters, work, unmasked)
    return Count(
        parameters=sum(_unmasked(p, masks.get(plain_name(n))) for n, p in network.named_parameters()),
        flops=sum(layer.flops for layer in layers.values()) + sum(products),
        flops_unmasked=sum(layer.flops_unmasked for layer in layers.values()) + sum(products),
        layers=layers,
        products=products,
    )


def _unmasked(parameter: nn.Parameter, mask: Tensor | None) -> int:
    return parameter.numel() if mask is None else int(mask.sum())


def _count_flops(network: nn.Module, inputs: Tensor) -> tuple[dict[nn.Module, int], tuple[int, ...]]:
    """Multiply-adds of a forward pass, those within every layer that it calls and of each operation outside."""
    from torch.utils.flop_counter import FlopCounterMode

    layers: dict[nn.Module, int] = {}
    products: list[int] = []
    within: list[nn.Module] = []  # the layers that are being called

    class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Callable[..., object], types: object, args: Any = (), kwargs: Any = None
        ) -> object:
            before = counter.get_total_flops()
            output = func(*args, **(kwargs or {}))
            if work := (counter.get_total_flops() - before) // 2:
                if within:
                    layers[within[-1]] += work
                else:
                    products.append(work)
            return output

    def enter(module: nn.Module, args: object) -> None:
        layers.setdefault(module, 0)
        within.append(module)

    def leave(module: nn.Module, args: object, output: object) -> None:
        within.pop()

    modules = [module for module in network.modules() if isinstance(module, _LAYERS)]
    handles = [module.register_forward_pre_hook(enter) for module in modules]
    handles += [module.register_forward_hook(leave) for module in modules]
    try:
        counter, operations = FlopCounterMode(display=False), Operations()  # type: ignore[no-untyped-call]
        with evaluating(network), _unfused(network), parametrize.cached():
            for module in filter(parametrize.is_parametrized, network.modules()):
                for name in cast(nn.ModuleDict, module.parametrizations):
                    getattr(module, name)  # now: what computes a weight is no work of the forward pass
            with counter, operations:
                network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return layers, tuple(products)


@contextmanager
def _unfused(network: nn.Module) -> Iterator[None]:
    """Let torch compute attention and recurrent layers by products that its counter sees."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of TF32 on other machines' GPUs
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


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


Layout = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a forward pass of a batch takes: median and interquartile range, in the faster memory layout.

    Attributes:
        layout: of images and weights, the one that was measured faster.
    """

    batch: int
    median_ms: float
    iqr_ms: float
    layout: Layout = "contiguous"


def measure_latency(
    network: nn.Module, input_shape: tuple[int, ...], batch: int, threads: int, seconds: float = 0.5
) -> Latency:
    """Time forward passes of a network, on its own device, in float32 and inference mode.

    A network with convolutions is timed in both memory layouts, since which one is faster depends on the network, the
    batch and the device; the faster one counts.

    Args:
        network: in eval mode; masks that are not baked in are multiplied in every pass. It is left as it is.
        input_shape: of one sample.
        threads: of the CPU.
        seconds: how long to measure in each layout; passes are timed in blocks long enough for the clock.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = example_input(input_shape, device).expand(batch, *input_shape).contiguous()
    times = [_timed(network, x, batch, threads, seconds, "contiguous")]
    if x.dim() == 4 and any(p.dim() == 4 for p in network.parameters()):
        turned = copy.deepcopy(network).to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        times.append(_timed(turned, x, batch, threads, seconds, "channels_last"))
    return min(times, key=lambda latency: latency.median_ms)


def _timed(network: nn.Module, x: Tensor, batch: int, threads: int, seconds: float, layout: Layout) -> Latency:
    with torch.inference_mode():
        timer = _timer()("network(x)", globals={"network": network, "x": x}, num_threads=threads)
        measured = timer.blocked_autorange(min_run_time=seconds)
    return Latency(batch, round(measured.median * 1e3, 5), round(measured.iqr * 1e3, 5), layout)


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
