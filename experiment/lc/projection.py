"""The compression of the L-C optimizer: from a network to its compressed form, and back to dense weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiment.config.schema.budget import Budget
from experiment.errors import CompressionError, kind_of
from experiment.inputs import Inputs
from experiment.layers.build import expand
from experiment.layers.compressible import WEIGHT_LAYERS, trace_layers
from experiment.layers.copied_network import copied
from experiment.layers.plan import State
from experiment.measure import Count
from experiment.methods.base import Calibration, Compressed, Compressor, Method
from experiment.methods.meter import Meter
from experiment.methods.real_budgets import compress_within
from experiment.random_streams import Part, generator


@dataclass(frozen=True)
class Projected:
    """The compressed form theta = Pi(w) of a network.

    Attributes:
        network: the compressed network, in eval mode.
        dense: the same weights on the original architecture, Delta(theta).
        compressed: with plan and count; None without a method.
    """

    network: nn.Module
    dense: nn.Module
    compressed: Compressed | None = None


Projection = Callable[[nn.Module, float], Projected]
"""Compresses a network in eval mode, without modifying it, for a weight mu of the squared distance to it.

Equal networks and weights give equal results.
"""


@dataclass(frozen=True)
class MethodProjection:
    """A method at one keep ratio. Each call is independent: a weight that was pruned may come back.

    Args:
        meter: measures what the budget limits.
        example: a batch of one input.
        original: count of the uncompressed network.
        stream: random stream of the method; every call draws the same numbers.
        unfused: the network's unfused modules, as in its state.
    """

    method: Method
    keep: float
    budget: Budget
    meter: Meter | None
    example: Inputs
    original: Count
    calibration: Calibration | None
    stream: tuple[Part, ...]
    recalibrated: bool = False
    unfused: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, network: nn.Module, mu: float) -> Projected:
        """Raises: InfeasibleBudget, CompressionError."""
        state = State(network, self.example, unfused=self.unfused)
        compressor = Compressor(
            self.method, state, self.original, self.calibration, generator(*self.stream),
            recalibrated=self.recalibrated, error_weight=mu,
        )  # fmt: skip
        compressed = compress_within(compressor, self.keep, self.budget, self.meter)
        dense = expand(compressed.network, network, compressed.plan, self.example).network
        return Projected(compressed.network, dense, compressed)


@dataclass(frozen=True)
class FunctionProjection:
    """A user-defined pair of functions, for which mu does not matter.

    Args:
        shrink: module -> compressed module; may modify its argument, a copy.
        restore: compressed module -> module with the original's layers under their names; may modify its
            argument, too.
    """

    shrink: Callable[[nn.Module], nn.Module]
    restore: Callable[[nn.Module], nn.Module]

    def __call__(self, network: nn.Module, mu: float = 1.0) -> Projected:
        """Raises: CompressionError: a function does not return a module."""
        with torch.no_grad():
            small = self.shrink(copied(network))
            dense = self.restore(copied(small)) if isinstance(small, nn.Module) else None
        for name, made in (("compress", small), ("decompress", dense)):
            if not isinstance(made, nn.Module):
                raise CompressionError(f"{name} must return a torch.nn.Module. Got {kind_of(made)}.")
        assert dense is not None
        return Projected(small.eval(), dense)


def condensed_weights(network: nn.Module, example: Inputs) -> dict[str, nn.Parameter]:
    """Layer name -> weight of each convolution and linear layer in use: the weights that compression may change."""
    found = {}
    for name in trace_layers(network, example, WEIGHT_LAYERS):
        parameters = dict(network.get_submodule(name).named_parameters(recurse=False))
        if "weight" in parameters:
            found[name] = parameters["weight"]
    return found


def weights_of(dense: nn.Module, like: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The weights of the same layers in a decompressed network.

    Raises: CompressionError: a layer is missing or has another shape.
    """
    modules = dict(dense.named_modules())
    found: dict[str, Tensor] = {}
    for name, weight in like.items():
        other = getattr(modules.get(name), "weight", None)
        if not isinstance(other, Tensor) or other.shape != weight.shape:
            came = "none" if not isinstance(other, Tensor) else f"one of shape {tuple(other.shape)}"
            raise CompressionError(
                f"decompress must return layer '{name}' with a weight of shape {tuple(weight.shape)}. Got {came}."
            )
        found[name] = other.detach().to(weight).clone()
    return found
