"""The layers of a network that can be compressed: what their weights mean, and on which grids they work.

A layer's weight as filters has the shape (F, C / groups, *kernel), with F output features, C input channels and d
kernel axes: 1 to 3 for a convolution, none for a linear layer or an embedding, whose channels are its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from experiment.inputs import Inputs, batch_size
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.transposed_linear import TransposedLinear

Grid = tuple[int, ...]

LINEAR_LAYERS = (nn.Linear, GroupedLinear, TransposedLinear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHT_LAYERS = (*LINEAR_LAYERS, *CONVOLUTIONS, nn.Embedding)
PLAIN_FORWARDS = {kind.forward for kind in WEIGHT_LAYERS}


@dataclass(frozen=True)
class LayerInfo:
    """A convolution, linear layer or embedding, with its use in the forward pass of one sample.

    Attributes:
        name: dotted module name (the first one, if it has several).
        kind: `conv`, `linear` or `embedding`.
        out_features, in_features: F and C; kernel: its sizes along d axes, () for a linear layer.
        groups: of the layer itself.
        input_grids, output_grids: the positions of every call along d axes. A linear layer on n positions has (n,). The
            grids of n images that the network folds into the batch (frames, tiles) stack up along the first axis.
        transposed: whether it is a transposed convolution.
        tied: layers with the same weight, which are compressed with it.
    """

    name: str
    kind: str
    out_features: int
    in_features: int
    kernel: tuple[int, ...]
    groups: int
    bias: bool
    input_grids: tuple[Grid, ...]
    output_grids: tuple[Grid, ...]
    transposed: bool = False
    tied: tuple[LayerInfo, ...] = ()

    @property
    def calls(self) -> int:
        """The number of calls per forward pass."""
        return len(self.output_grids)

    @property
    def positions(self) -> int:
        """Where every weight is used once, summed over calls: outputs, or the inputs of a transposed convolution."""
        return sum(math.prod(grid) for grid in (self.input_grids if self.transposed else self.output_grids))

    @property
    def weight_numel(self) -> int:
        """The number of weights."""
        return self.out_features * (self.in_features // self.groups) * math.prod(self.kernel)


def filters_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight, or a mask of it, as filters: (F, C / groups, *kernel)."""
    if isinstance(layer, nn.Embedding | TransposedLinear):
        return weight.T
    if isinstance(layer, _ConvNd) and layer.transposed:  # (C, F / groups, *kernel)
        return torch.unflatten(weight, 0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight


def weight_of(layer: nn.Module, filters: Tensor) -> Tensor:
    """The inverse of `filters_of`: filters in the layout of the layer's own weight."""
    return filters_of(layer, filters)  # the same exchange of two dimensions


def features_of(layer: nn.Module) -> tuple[int, int]:
    """F and C of a layer."""
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, layer.num_embeddings
    if isinstance(layer, _ConvNd):
        return layer.out_channels, layer.in_channels
    assert isinstance(layer, LINEAR_LAYERS), type(layer)
    return int(layer.out_features), int(layer.in_features)


def kernel_of(layer: nn.Module) -> tuple[int, ...]:
    """The sizes of a layer's kernel."""
    return tuple(layer.kernel_size) if isinstance(layer, _ConvNd) else ()


def kind_of_layer(layer: nn.Module) -> str:
    """`conv`, `linear` or `embedding`."""
    return "conv" if kernel_of(layer) else "embedding" if isinstance(layer, nn.Embedding) else "linear"


def groups_of(layer: nn.Module) -> int:
    """The groups of channels of a layer."""
    return int(getattr(layer, "groups", 1))


def channel_dim(layer: nn.Module) -> int:
    """The dimension of the channels in a layer's output, and in its input unless that is tokens; from the end."""
    return -1 - len(kernel_of(layer))


def trace_layers(
    network: nn.Module, example: Inputs, kinds: tuple[type[nn.Module], ...] = WEIGHT_LAYERS
) -> dict[str, LayerInfo]:
    """Every layer of these kinds that a forward pass of `example` calls, grouped ones included, in module order.

    Args:
        network: not modified.
        example: an input batch of any size; grids are those of one sample.
    """
    modules = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    grids: dict[str, list[tuple[Grid, Grid]]] = {}
    samples = batch_size(example)

    def record(call: Call) -> None:
        layer, x, y = call.module, call.input, call.output
        before = (-(-x.numel() // samples),) if isinstance(layer, nn.Embedding) else _grid(layer, x, samples)
        grids.setdefault(call.name, []).append((before, _grid(layer, y, samples)))

    observed_pass(network, modules, example, after=record)
    return {name: _info(name, module, grids[name]) for name, module in modules.items() if name in grids}


def compressible_layers(network: nn.Module, example: Inputs) -> dict[str, LayerInfo]:
    """The layers that low-rank factors may replace: used by the forward pass, parameters shared with no other.

    An exception are embeddings and linear layers that share one weight: the first embedding that is used has the others
    in `tied`. Subclasses with a forward pass of their own are left out: plain layers cannot replace them. So are
    embeddings that renormalise their rows in the forward pass, and the factors of a decomposed layer.
    """
    found, held, modules = trace_layers(network, example), holders(network), dict(network.named_modules())
    layers = {}
    for name, info in found.items():
        module = modules[name]
        if not is_plain(module) or isinstance(module, GroupedLinear | TransposedLinear):
            continue
        if all(len(held[p]) == 1 for p in module.parameters()):
            layers[name] = info
        elif (tied := _tied(name, found, modules, held)) is not None:
            layers[name] = replace(info, tied=tied)
    return layers


def maskable_layers(network: nn.Module, example: Inputs) -> dict[str, LayerInfo]:
    """The layers whose weights may be masked: every one in use whose parameters are shared with no other layer."""
    held, modules = holders(network), dict(network.named_modules())
    return {
        name: info
        for name, info in trace_layers(network, example).items()
        if is_plain(modules[name]) and all(len(held[p]) == 1 for p in modules[name].parameters())
    }


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what its class in torch does, from its weight as it is."""
    return type(layer).forward in PLAIN_FORWARDS and getattr(layer, "max_norm", None) is None


def holders(network: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter with the names of all modules that hold it."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(parameter, []).append(name)
    return found


def leaders(network: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Layer name -> the first of these layers that has the same weight, which is the layer itself unless it is tied."""
    first: dict[int, str] = {}
    modules = {name: network.get_submodule(name) for name in names}
    return {name: first.setdefault(id(getattr(module, "weight", module)), name) for name, module in modules.items()}


def _tied(
    name: str, found: Mapping[str, LayerInfo], modules: Mapping[str, nn.Module], held: Mapping[nn.Parameter, list[str]]
) -> tuple[LayerInfo, ...] | None:
    """The other holders of an embedding's weight; None unless it is the first one in use, and all can follow it."""
    weight = dict(modules[name].named_parameters()).get("weight")
    names = [] if weight is None else held[weight]
    layers = {n: modules[n] for n in names}
    leader = next((n for n in names if n in found and isinstance(layers[n], nn.Embedding)), None)
    if leader != name or not all(isinstance(m, nn.Embedding | nn.Linear) and is_plain(m) for m in layers.values()):
        return None
    biases = {n: m.bias for n, m in layers.items() if isinstance(m, nn.Linear) and m.bias is not None}
    if any(isinstance(modules[n], WEIGHT_LAYERS) for own, b in biases.items() for n in held[b] if n != own):
        return None
    return tuple(found.get(n) or _info(n, layers[n], []) for n in names if n != name)


def _grid(layer: nn.Module, x: Tensor, samples: int) -> Grid:
    """The grid of one sample, with dimensions that the network folds into the batch stacked up."""
    dims = len(kernel_of(layer))
    if not dims:
        return (-(-x.shape[:-1].numel() // samples),)
    first, *others = x.shape[-dims:]
    return (-(-x.shape[: -1 - dims].numel() // samples) * first, *others)


def _info(name: str, layer: nn.Module, grids: Sequence[tuple[Grid, Grid]]) -> LayerInfo:
    outputs, inputs = features_of(layer)
    return LayerInfo(
        name=name,
        kind=kind_of_layer(layer),
        out_features=outputs,
        in_features=inputs,
        kernel=kernel_of(layer),
        groups=groups_of(layer),
        bias=getattr(layer, "bias", None) is not None,
        input_grids=tuple(before for before, _ in grids),
        output_grids=tuple(after for _, after in grids),
        transposed=isinstance(layer, _ConvNd) and layer.transposed,
    )
