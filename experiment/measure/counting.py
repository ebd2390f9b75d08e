"""Parameters and multiply-adds, counted on the deployed network itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from experiment.inputs import Inputs, as_form, call_network, example_of, first
from experiment.layers.compressible import WEIGHT_LAYERS, kind_of_layer
from experiment.layers.forward_pass import Call, evaluating, observing
from experiment.layers.masks import named_masks, plain_name
from experiment.layers.prepare_network import unwrapped
from experiment.registry import InputForm, InputShape

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class LayerCount:
    """One convolution, linear layer or embedding.

    Attributes:
        kind: `conv`, `linear` or `embedding`.
        parameters: unmasked elements, bias included. Elements shared with an earlier layer count there only, so that
            layers add up to the network.
        flops: multiply-adds of one sample.
        flops_unmasked: multiply-adds of unmasked weights.
    """

    kind: str
    parameters: int
    flops: int
    flops_unmasked: int


@dataclass(frozen=True)
class Count:
    """A whole network.

    Attributes:
        parameters: unmasked elements of all parameters, including BatchNorm and biases; shared ones count once.
        flops: multiply-adds of one sample's forward pass.
        flops_unmasked: the same without masked weights of layers.
        layers: the convolutions, linear layers and embeddings that the forward pass calls, in module order.
        products: multiply-adds of each operation outside these layers, in the order of computation, such as products
            of activations in attention, recurrent layers and `F.linear`.
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


def count(network: nn.Module, example: Inputs) -> Count:
    """Count the parameters of a network and the multiply-adds of a forward pass of one sample.

    Multiply-adds are those of `torch.utils.flop_counter`: matrix products, convolutions and scaled dot products, in
    layers or outside them, including everything that the network folds into the batch. Fused kernels (attention, LSTM,
    GRU) are counted as the products that they consist of. Elementwise operations (activations, normalization, pooling),
    matrix-vector products, `nn.Bilinear` and operators of other libraries are not counted.

    Args:
        network: any network, compressed or not; it is unchanged. `torch.compile` and similar wrappers are removed.
        example: a batch of inputs on the network's device; its first sample is used, its values do not matter.
    """
    network = unwrapped(network)
    masks = named_masks(network)
    layer_flops, products = _count_flops(network, first(example))
    layers, seen = {}, set[nn.Parameter]()
    for name, module in network.named_modules():
        if module in layer_flops:
            own = {f"{name}.{n}" if name else n: p for n, p in module.named_parameters() if p not in seen}
            seen.update(own.values())
            parameters = sum(_unmasked(p, masks.get(plain_name(n))) for n, p in own.items())
            mask, work = masks.get(f"{name}.weight" if name else "weight"), layer_flops[module]
            unmasked = work if mask is None else work * int(mask.sum()) // max(1, mask.numel())
            layers[name] = LayerCount(kind_of_layer(module), parameters, work, unmasked)
    return Count(
        parameters=sum(_unmasked(p, masks.get(plain_name(n))) for n, p in network.named_parameters()),
        flops=sum(layer.flops for layer in layers.values()) + sum(products),
        flops_unmasked=sum(layer.flops_unmasked for layer in layers.values()) + sum(products),
        layers=layers,
        products=products,
    )


def _unmasked(parameter: nn.Parameter, mask: Tensor | None) -> int:
    return parameter.numel() if mask is None else int(mask.sum())


def _count_flops(network: nn.Module, inputs: Inputs) -> tuple[dict[nn.Module, int], tuple[int, ...]]:
    """Multiply-adds of a forward pass: within each layer, and of each operation outside layers."""
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

    def enter(call: Call) -> None:
        layers.setdefault(call.module, 0)
        within.append(call.module)

    def leave(call: Call) -> None:
        within.pop()

    modules = {name: module for name, module in network.named_modules() if isinstance(module, WEIGHT_LAYERS)}
    counter, operations = FlopCounterMode(display=False), Operations()  # type: ignore[no-untyped-call]
    with observing(modules, before=enter, after=leave), evaluating(network), _unfused(network), parametrize.cached():
        for module in filter(parametrize.is_parametrized, network.modules()):
            for name in cast(nn.ModuleDict, module.parametrizations):
                getattr(module, name)  # now: what computes a weight is no work of the forward pass
        with counter, operations:
            call_network(network, inputs)
    return layers, tuple(products)


@contextmanager
def _unfused(network: nn.Module) -> Iterator[None]:
    """Disable fused kernels of attention and recurrent layers, which the counter cannot inspect."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # about TF32
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def example_input(form: InputForm | tuple[int, ...], device: torch.device | str = "cpu", batch: int = 1) -> Inputs:
    """A batch of equal, deterministic inputs of the given shape, such as (channels, height, width), or form."""

    form = as_form(form)
    middle = 0.0 if isinstance(form, InputShape) else 2.0  # one of several may be a mask, which must not sum up to zero

    def make(shape: InputShape) -> Tensor:
        if shape.tokens:
            return torch.zeros(batch, *shape, dtype=torch.int64, device=device)
        size = int(torch.Size(shape).numel())
        one = torch.linspace(middle - 1, middle + 1, size, device=device).reshape(1, *shape)
        return one.expand(batch, *shape).contiguous()

    return example_of(form, make)
