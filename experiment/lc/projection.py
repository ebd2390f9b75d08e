"""What the L-C optimizer knows of compression: a network becomes its compressed form, and that dense weights again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import expand
from experiment.layers.compressible import WEIGHT_LAYERS, trace_layers
from experiment.layers.plan import State
from experiment.measure import Count
from experiment.methods.base import Calibration, Compressed, Compressor, Method, Quantity
from experiment.random_streams import Part, generator


@dataclass(frozen=True)
class Projected:
    """A network compressed: theta = Pi(w).

    Attributes:
        network: the compressed form, in eval mode.
        dense: the same weights on the original architecture, Delta(theta).
        compressed: plan and count too, where a method made it.
    """

    network: nn.Module
    dense: nn.Module
    compressed: Compressed | None = None


Projection = Callable[[nn.Module], Projected]
"""Compress a network, which is in eval mode and is not modified; equal networks give equal results."""


@dataclass(frozen=True)
class MethodProjection:
    """A method at one keep ratio: analysed, planned, built and filled anew from whatever weights it is given.

    No support is carried from one call to the next: a weight that was pruned may come back.

    Args:
        example: a batch of one input.
        original: the uncompressed network's count.
        stream: what a method's own sampling draws from, the same draws in every call.
    """

    method: Method
    keep: float
    budget: Quantity
    example: Tensor
    original: Count
    calibration: Calibration | None
    stream: tuple[Part, ...]
    recalibrated: bool = False

    def __call__(self, network: nn.Module) -> Projected:
        """Raises: InfeasibleBudget, CompressionError."""
        compressor = Compressor(
            self.method, State(network, self.example), self.original, self.calibration, generator(*self.stream),
            recalibrated=self.recalibrated,
        )  # fmt: skip
        compressed = compressor.compress(self.keep, self.budget)
        dense = expand(compressed.network, network, compressed.plan, self.example).network
        return Projected(compressed.network, dense, compressed)


@dataclass(frozen=True)
class FunctionProjection:
    """A pair of functions of the user's own.

    Args:
        shrink: module -> compressed module; may change what it is given, which is a copy.
        restore: compressed module -> one that has the original's layers under their names; likewise.
    """

    shrink: Callable[[nn.Module], nn.Module]
    restore: Callable[[nn.Module], nn.Module]

    def __call__(self, network: nn.Module) -> Projected:
        """Raises: CompressionError: a function returns no module."""
        with torch.no_grad():
            small = self.shrink(copy.deepcopy(network))
            dense = self.restore(copy.deepcopy(small)) if isinstance(small, nn.Module) else None
        for name, made in (("compress", small), ("decompress", dense)):
            if not isinstance(made, nn.Module):
                raise CompressionError(f"{name} must return a torch.nn.Module. Got a {type(made).__name__}.")
        assert dense is not None
        return Projected(small.eval(), dense)


def condensed_weights(network: nn.Module, example: Tensor) -> dict[str, nn.Parameter]:
    """Layer name -> weight of every convolution and linear layer in use: what compression acts on, without biases."""
    found = {}
    for name in trace_layers(network, example, WEIGHT_LAYERS):
        parameters = dict(network.get_submodule(name).named_parameters(recurse=False))
        if "weight" in parameters:
            found[name] = parameters["weight"]
    return found


def weights_of(dense: nn.Module, like: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The weights of the same layers in a decompressed network.

    Raises: CompressionError: a layer is not there, or of another shape.
    """
    modules = dict(dense.named_modules())
    found: dict[str, Tensor] = {}
    for name, weight in like.items():
        other = getattr(modules.get(name), "weight", None)
        if not isinstance(other, Tensor) or other.shape != weight.shape:
            came = "none" if not isinstance(other, Tensor) else f"one of shape {tuple(other.shape)}"
            raise CompressionError(
                f"decompress must give layer '{name}' a weight of shape {tuple(weight.shape)}, as the network has. "
                f"Got {came}."
            )
        found[name] = other.detach().to(weight).clone()
    return found
