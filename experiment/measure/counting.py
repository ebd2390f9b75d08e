"""Parameters and multiply-adds, counted on the deployed network itself."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

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
from experiment.layers.read_parameters import Sources, is_matrix
from experiment.registry import InputForm, InputShape


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
        read: name of every parameter that operations outside these layers read -> those of `products` that multiply by
            it: none for an embedding, all steps for a recurrent weight. Shared parameters have their first name.
        others: unmasked elements of every parameter in `read` that has a matrix and is in no layer.
    """

    parameters: int
    flops: int
    flops_unmasked: int
    layers: Mapping[str, LayerCount]
    products: tuple[int, ...] = ()
    read: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def other_flops(self) -> int:
        """Multiply-adds outside the layers."""
        return sum(self.products)


def count(network: nn.Module, example: Inputs, masks: Mapping[str, Tensor] | None = None) -> Count:
    """Count the parameters of a network and the multiply-adds of a forward pass of one sample.

    Multiply-adds are those of `torch.utils.flop_counter`: matrix products, convolutions and scaled dot products, in
    layers or outside them, including everything that the network folds into the batch. Fused kernels (attention, LSTM,
    GRU) are counted as the products that they consist of. Elementwise operations (activations, normalization, pooling),
    matrix-vector products, `nn.Bilinear` and operators of other libraries are not counted.

    Args:
        network: any network, compressed or not; it is unchanged. `torch.compile` and similar wrappers are removed.
        example: a batch of inputs on the network's device; its first sample is used, its values do not matter.
        masks: parameter name -> mask, for a plain network that is to be counted with them.
    """
    network = unwrapped(network)
    return _counted(network, masks or named_masks(network), _work_of(network, first(example)))


def recount(network: nn.Module, before: Count) -> Count:
    """The count of a network that differs from one counted before by its masks alone: no forward pass."""
    flops = {name: layer.flops for name, layer in before.layers.items()}
    return _counted(network, named_masks(network), _Work(flops, list(before.products), dict(before.read)))


@dataclass(frozen=True)
class _Work:
    """Multiply-adds: of layers by name, of each operation outside them, and of these by the parameter they read."""

    layers: dict[str, int]
    products: list[int]
    read: dict[str, int]


def _counted(network: nn.Module, masks: Mapping[str, Tensor], work: _Work) -> Count:
    names = {plain_name(name): p for name, p in network.named_parameters(remove_duplicate=False)}
    masked = {names[name]: int(torch.count_nonzero(mask)) for name, mask in masks.items()}
    sizes = {p: masked.get(p, p.numel()) for p in names.values()}

    def unmasked(flops: int, name: str) -> int:
        parameter = names.get(name)  # none if several parameters make the weight
        return flops if parameter is None else flops * sizes[parameter] // max(1, parameter.numel())

    layers, seen = {}, set[nn.Parameter]()
    for name, flops in work.layers.items():
        module = network.get_submodule(name)
        own = [p for p in module.parameters() if p not in seen]
        seen.update(own)
        weight = f"{name}.weight" if name else "weight"
        layers[name] = LayerCount(kind_of_layer(module), sum(sizes[p] for p in own), flops, unmasked(flops, weight))
    outside = sum(work.products)
    gone = sum(flops - unmasked(flops, name) for name, flops in work.read.items())
    return Count(
        parameters=sum(sizes.values()),
        flops=sum(layer.flops for layer in layers.values()) + outside,
        flops_unmasked=sum(layer.flops_unmasked for layer in layers.values()) + outside - gone,
        layers=layers,
        products=tuple(work.products),
        read=work.read,
        others={n: sizes[names[n]] for n in work.read if names[n] not in seen and is_matrix(names[n])},
    )


def _work_of(network: nn.Module, inputs: Inputs) -> _Work:
    """The multiply-adds of a forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    work = _Work({}, [], {})
    within: list[str] = []  # the layers that are being called

    class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Callable[..., object], types: object, args: Any = (), kwargs: Any = None
        ) -> object:
            before = counter.get_total_flops()
            output = func(*args, **(kwargs or {}))
            flops = (counter.get_total_flops() - before) // 2
            if within:
                work.layers[within[-1]] += flops
                return output
            if flops:
                work.products.append(flops)
            for name in sources.of(args, kwargs):  # all by the largest: not the bias, and only one of two factors
                work.read[name], flops = work.read.get(name, 0) + flops, 0
            return output

    def enter(call: Call) -> None:
        work.layers.setdefault(call.name, 0)
        within.append(call.name)

    def leave(call: Call) -> None:
        within.pop()

    modules = {name: module for name, module in network.named_modules() if isinstance(module, WEIGHT_LAYERS)}
    counter, operations = FlopCounterMode(display=False), Operations()  # type: ignore[no-untyped-call]
    with observing(modules, before=enter, after=leave), evaluating(network), _unfused(network), parametrize.cached():
        sources = Sources({plain_name(name): p for name, p in network.named_parameters()})
        for module in filter(parametrize.is_parametrized, network.modules()):
            for name, chain in cast(nn.ModuleDict, module.parametrizations).items():
                value = getattr(module, name)  # now: what computes a weight is no work of the forward pass
                sources.add(value, list(chain.parameters(recurse=False)))
        with counter, operations, _without_gradients(network):
            call_network(network, inputs)
    sources = Sources({})  # the class above is in a reference cycle, and with it all that it can see
    return _Work({name: work.layers[name] for name in modules if name in work.layers}, work.products, work.read)


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """Parameters that require no gradients: the counter fails on views of others that modules receive in tuples."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


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
