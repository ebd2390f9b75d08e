"""The layers of a network that can be compressed, and their grids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from experiment.inputs import Inputs, batch_size
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.grouped_linear import GroupedLinear

Grid = tuple[int, int]

MATRIX_LAYERS = (nn.Conv2d, nn.Linear, GroupedLinear)
OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHT_LAYERS = (*MATRIX_LAYERS, *OTHER_CONVOLUTIONS)
PLAIN_FORWARDS = {kind.forward for kind in WEIGHT_LAYERS}


@dataclass(frozen=True)
class LayerInfo:
    """A convolution or linear layer, with its use in the forward pass of one sample.

    Attributes:
        name: dotted module name (the first one, if it has several).
        kind: `conv` or `linear`.
        out_features, in_features: f and c; kernel: (k1, k2), (1, 1) for a linear layer.
        groups: of the layer itself; only layers with 1 are compressible.
        positions: output positions per sample, summed over the calls of one forward pass.
        calls: number of calls per forward pass.
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
    def weight_numel(self) -> int:
        return self.out_features * (self.in_features // self.groups) * self.kernel[0] * self.kernel[1]


def trace_layers(
    network: nn.Module, example: Inputs, kinds: tuple[type[nn.Module], ...] = MATRIX_LAYERS
) -> dict[str, LayerInfo]:
    """Every layer of these kinds that a forward pass of `example` calls, grouped ones included, in module order.

    A convolution of one or three dimensions, or a transposed one, has one kernel axis and one grid axis; the
    positions of a transposed one are its inputs, so that there is one multiply-add per weight and position.

    Args:
        network: not modified.
        example: an input batch of any size; grids are those of one sample.
        kinds: Conv2d and linear layers, or `WEIGHT_LAYERS`, which has every convolution.
    """
    modules = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    grids: dict[str, list[tuple[Grid, Grid]]] = {}

    def record(call: Call) -> None:
        grids.setdefault(call.name, []).append(_grids(call, batch_size(example)))

    observed_pass(network, modules, example, after=record)
    return {name: _info(name, module, grids[name]) for name, module in modules.items() if name in grids}


def compressible_layers(network: nn.Module, example: Inputs) -> dict[str, LayerInfo]:
    """The layers that methods may compress: used by the forward pass, not grouped, parameters shared with no other.

    Subclasses with a forward pass of their own are left out: plain layers cannot replace them.
    """
    found = trace_layers(network, example)
    return _with_own_weights(network, {name: info for name, info in found.items() if info.groups == 1})


def maskable_layers(network: nn.Module, example: Inputs) -> dict[str, LayerInfo]:
    """The layers whose weights may be masked: `compressible_layers` and grouped, transposed, 1d and 3d convolutions."""
    return _with_own_weights(network, trace_layers(network, example, WEIGHT_LAYERS))


def holders(network: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter with the names of all modules that hold it."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(parameter, []).append(name)
    return found


def _with_own_weights(network: nn.Module, layers: Mapping[str, LayerInfo]) -> dict[str, LayerInfo]:
    held, modules = holders(network), dict(network.named_modules())
    return {
        name: info
        for name, info in layers.items()
        if type(modules[name]).forward in PLAIN_FORWARDS and all(len(held[p]) == 1 for p in modules[name].parameters())
    }


def _grids(call: Call, batch_size: int) -> tuple[Grid, Grid]:
    """Input and output grid of one sample, without dimensions that the network folds into the batch."""
    layer, x, y = call.module, call.input, call.output
    if isinstance(layer, OTHER_CONVOLUTIONS):
        before = (x.numel() // layer.in_channels // batch_size, 1)
        return before, before if layer.transposed else (y.numel() // layer.out_channels // batch_size, 1)
    return _grid(layer, x, batch_size), _grid(layer, y, batch_size)


def _grid(layer: nn.Module, x: Tensor, batch_size: int) -> Grid:
    if isinstance(layer, nn.Conv2d):
        images = -(-x.shape[:-3].numel() // batch_size)
        return (images * x.shape[-2], x.shape[-1])
    return (-(-x.shape[:-1].numel() // batch_size), 1)


def _info(name: str, layer: nn.Module, grids: list[tuple[Grid, Grid]]) -> LayerInfo:
    groups = int(getattr(layer, "groups", 1))
    inputs, outputs = tuple(g for g, _ in grids), tuple(g for _, g in grids)
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear | GroupedLinear):
        return LayerInfo(
            name, "linear", layer.out_features, layer.in_features, (1, 1), groups, bias, inputs, outputs
        )  # fmt: skip
    assert isinstance(layer, nn.modules.conv._ConvNd)
    kernel = layer.kernel_size if isinstance(layer, nn.Conv2d) else (math.prod(layer.kernel_size), 1)
    return LayerInfo(
        name, "conv", layer.out_channels, layer.in_channels, (kernel[0], kernel[1]), groups, bias, inputs, outputs
    )  # fmt: skip
