"""Which layers of a network can be compressed, and on which grids they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.layers.grouped_linear import GroupedLinear

Grid = tuple[int, int]


@dataclass(frozen=True)
class LayerInfo:
    """A convolution or linear layer as one forward pass of one sample uses it.

    Attributes:
        name: dotted module name (the first one, where a module stands under several).
        kind: `conv` or `linear`.
        out_features, in_features: f and c; kernel: (k1, k2), (1, 1) for a linear layer.
        groups: of the layer itself; only layers with 1 are compressible.
        positions: output positions a sample, summed over the calls of one forward pass.
        input_positions: input positions a sample, likewise.
        calls: how often one forward pass uses the layer.
        input_grids, output_grids: (height, width) of every call. A linear layer on n positions has (n, 1). The grids of
            n images that the network folds into the batch (frames, tiles) stack up to one of (n * height, width).
    """

    name: str
    kind: str
    out_features: int
    in_features: int
    kernel: tuple[int, int]
    groups: int
    bias: bool
    input_grids: tuple[Grid, ...]
    output_grids: tuple[Grid, ...]

    @property
    def calls(self) -> int:
        return len(self.output_grids)

    @property
    def positions(self) -> int:
        return sum(h * w for h, w in self.output_grids)

    @property
    def input_positions(self) -> int:
        return sum(h * w for h, w in self.input_grids)

    @property
    def weight_numel(self) -> int:
        return self.out_features * (self.in_features // self.groups) * self.kernel[0] * self.kernel[1]


@contextmanager
def evaluating(network: nn.Module, *, keeping_buffers: bool = True) -> Iterator[None]:
    """Eval mode and no gradients inside; outside, every module's own mode and all buffers are as they were.

    Args:
        keeping_buffers: whether what is written to buffers inside, such as counters in a forward pass, is taken back.
    """
    modes = {module: module.training for module in network.modules()}
    held = [(m, name, b) for m in modes for name, b in m._buffers.items() if keeping_buffers and b is not None]
    buffers = [(m, name, b, b.clone()) for m, name, b in held if not b.is_meta]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:  # counters, caches and codebooks that the forward pass writes
                module._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def pass_recorded(network: nn.Module, records: Mapping[str, Callable[..., None]], inputs: Tensor, samples: int) -> None:
    """Send all inputs through a network in eval mode, in parts, and tell of every call of the named modules.

    Args:
        records: module name -> a forward hook with keyword arguments: (module, args, named, output).
        inputs: (B, ...), on any device.
        samples: in one part.
    """
    device = next(network.parameters()).device
    handles = [
        network.get_submodule(name).register_forward_hook(record, with_kwargs=True) for name, record in records.items()
    ]
    try:
        with evaluating(network):
            for part in torch.split(inputs, samples):
                network(part.to(device))
    finally:
        for handle in handles:
            handle.remove()


def trace_layers(network: nn.Module, example: Tensor) -> dict[str, LayerInfo]:
    """Every convolution and linear layer that a forward pass of `example` calls, grouped ones too, in module order.

    Args:
        network: any network; its modes, weights and buffers are left as they are.
        example: an input batch; grids are those of one sample, so any batch size will do.
    """
    modules = {m: n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | GroupedLinear)}
    grids: dict[nn.Module, list[tuple[Grid, Grid]]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        x = inputs[0] if inputs else named["input"]
        grids.setdefault(module, []).append((_grid(module, x, len(example)), _grid(module, output, len(example))))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with evaluating(network):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _info(name, module, grids[module]) for module, name in modules.items() if module in grids}


def compressible_layers(network: nn.Module, example: Tensor) -> dict[str, LayerInfo]:
    """The layers that methods may compress: used by the forward pass, not grouped, parameters shared with no other.

    A subclass that computes otherwise than Conv2d or Linear is none of them: plain layers cannot stand in for it.
    """
    found = trace_layers(network, example)
    return _with_weights_of_their_own(network, {name: info for name, info in found.items() if info.groups == 1})


def maskable_layers(network: nn.Module, example: Tensor) -> dict[str, LayerInfo]:
    """The layers whose single weights may be masked, in module order: grouped layers and every convolution, too.

    A convolution of one or three dimensions, or a transposed one, is listed with one kernel axis and one grid axis, and
    a transposed one with its inputs as positions: a weight takes part in one multiply-add a position.
    """
    found = trace_layers(network, example) | trace_other_convolutions(network, example)
    own = _with_weights_of_their_own(network, found)
    return {name: own[name] for name, _ in network.named_modules() if name in own}


OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLAIN = {kind.forward for kind in (nn.Conv2d, nn.Linear, GroupedLinear, *OTHER_CONVOLUTIONS)}


def holders(network: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter with the names of all modules that hold it."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(parameter, []).append(name)
    return found


def _with_weights_of_their_own(network: nn.Module, layers: Mapping[str, LayerInfo]) -> dict[str, LayerInfo]:
    held, modules = holders(network), dict(network.named_modules())
    return {
        name: info
        for name, info in layers.items()
        if type(modules[name]).forward in PLAIN and all(len(held[p]) == 1 for p in modules[name].parameters())
    }


def trace_other_convolutions(network: nn.Module, example: Tensor) -> dict[str, LayerInfo]:
    """The convolutions in use that `trace_layers` leaves out, as `maskable_layers` has them."""
    names = {module: name for name, module in network.named_modules() if isinstance(module, OTHER_CONVOLUTIONS)}
    grids: dict[nn.Module, list[tuple[Grid, Grid]]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        assert isinstance(module, OTHER_CONVOLUTIONS)
        x = inputs[0] if inputs else named["input"]
        before = (x.numel() // module.in_channels // len(example), 1)
        after = before if module.transposed else (output.numel() // module.out_channels // len(example), 1)
        grids.setdefault(module, []).append((before, after))

    if names:
        pass_recorded(network, dict.fromkeys(names.values(), record), example, len(example))
    return {name: _other_info(name, module, grids[module]) for module, name in names.items() if module in grids}


def _other_info(name: str, module: nn.Module, grids: list[tuple[Grid, Grid]]) -> LayerInfo:
    assert isinstance(module, OTHER_CONVOLUTIONS)
    return LayerInfo(
        name, "conv", module.out_channels, module.in_channels, (math.prod(module.kernel_size), 1), module.groups,
        module.bias is not None, tuple(g for g, _ in grids), tuple(g for _, g in grids),
    )  # fmt: skip


def _grid(module: nn.Module, x: Tensor, batch_size: int) -> Grid:
    """The grid of one sample, whichever dimensions the network has folded into the batch."""
    if isinstance(module, nn.Conv2d):
        images = -(-x.shape[:-3].numel() // batch_size)
        return (images * x.shape[-2], x.shape[-1])
    return (-(-x.shape[:-1].numel() // batch_size), 1)


def _info(name: str, module: nn.Module, grids: list[tuple[Grid, Grid]]) -> LayerInfo:
    inputs, outputs = tuple(g for g, _ in grids), tuple(g for _, g in grids)
    if isinstance(module, nn.Conv2d):
        k1, k2 = module.kernel_size
        return LayerInfo(
            name, "conv", module.out_channels, module.in_channels, (k1, k2), module.groups,
            module.bias is not None, inputs, outputs,
        )  # fmt: skip
    assert isinstance(module, nn.Linear | GroupedLinear)
    groups = module.groups if isinstance(module, GroupedLinear) else 1
    bias = isinstance(module, nn.Linear) and module.bias is not None
    return LayerInfo(
        name, "linear", module.out_features, module.in_features, (1, 1), groups, bias, inputs, outputs
    )  # fmt: skip
