"""The starting state of a method: the layers that may be compressed, their remaining weights, and all costs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import slice_mask, sliced_copy
from experiment.layers.compressible import LayerInfo, compressible_layers, filters_of, leaders, maskable_layers
from experiment.layers.forms import UNMASKED
from experiment.layers.plan import Detail, Kept, Plan, State
from experiment.layers.read_parameters import is_matrix, may_be_computed, shown
from experiment.measure import Count, count
from experiment.methods.base import Budget, Quantity


@dataclass(frozen=True)
class Start:
    """The remaining layers and weights of a state.

    Attributes:
        state: the state itself, in the original shapes.
        network: the state's network without the removed channels; the same object if there are none.
        masks: the state's masks, in the shapes of `network`.
        layers: the layers of `network` that the method may compress.
        count: the size of the state, with masks and without removed channels.
        weights: name of every parameter of `network` that the method may mask -> multiply-adds of each of its elements,
            in network order. One that several modules share has its first name.
    """

    state: State
    network: nn.Module
    masks: Mapping[str, Tensor]
    layers: Mapping[str, LayerInfo]
    count: Count
    weights: Mapping[str, int]

    def of(self, parameters: Collection[str]) -> Start:
        """The same, for a method that may mask these parameters alone."""
        return replace(self, weights={name: flops for name, flops in self.weights.items() if name in parameters})

    def live(self, parameter: str) -> Tensor:
        """A parameter's values, with masked elements at zero."""
        values = self.network.get_parameter(parameter).detach()
        mask = self.masks.get(parameter)
        return values if mask is None else values * mask.to(values.device)

    def alive(self, parameter: str) -> Tensor:
        """Which elements of a parameter the state's masks leave, on its device."""
        values, mask = self.network.get_parameter(parameter), self.masks.get(parameter)
        return torch.ones_like(values, dtype=torch.bool) if mask is None else mask.to(values.device)

    @cached_property
    def alive_numbers(self) -> Mapping[str, int]:
        """Name of every parameter in `weights` -> how many of its elements the masks leave."""
        return {
            name: int(self.masks[name].sum()) if name in self.masks else self.network.get_parameter(name).numel()
            for name in self.weights
        }

    @cached_property
    def all_names(self) -> Mapping[str, Sequence[str]]:
        """Name of every parameter in `weights` -> its names in all modules that share it."""
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in self.network.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        return {name: names[self.network.get_parameter(name)] for name in self.weights}

    def cost(self, quantity: Quantity) -> int:
        """The whole state's unmasked parameters or multiply-adds."""
        return self.count.parameters if quantity == "parameters" else self.count.flops_unmasked

    def layer_cost(self, name: str, quantity: Quantity) -> int:
        """A layer's unmasked parameters, bias included, or unmasked multiply-adds; with those of its tied layers.

        Constants that it leaves in a sum are not its own: they stay whatever becomes of the layer.
        """
        names = [name, *(tied.name for tied in self.layers[name].tied)] if name in self.layers else [name]
        layers = [self.count.layers[n] for n in names if n in self.count.layers]
        if quantity == "flops":
            return sum(layer.flops_unmasked for layer in layers)
        constants = sum(self.state.kept.get(n, Kept()).num_constants for n in names if n in self.count.layers)
        return sum(layer.parameters for layer in layers) - constants

    def alive_weights(self, layer: str) -> int:
        """How many of a layer's weights its mask leaves; UNMASKED without one."""
        mask = self.masks.get(parameter_name(layer))
        return UNMASKED if mask is None else int(mask.sum())

    def allows(self, budget: Budget) -> bool:
        """Whether the state meets the budget without any change."""
        return self.cost(budget.quantity) <= budget.limit

    def unchanged(self, details: Mapping[str, Mapping[str, Detail]] | None = None) -> Plan:
        """The plan that keeps the masks and channels of the state."""
        return Plan(
            masks=dict(self.state.masks),
            kept=dict(self.state.kept),
            parameters=self.count.parameters,
            details=details or {},
        )


def start_of(state: State, *, masked: bool = False) -> Start:
    """Trace and count a state.

    Args:
        masked: for methods that mask weights: include all layers whose weights can be masked, such as grouped,
            transposed, 1-d and 3-d convolutions, and in `weights` every matrix that the forward pass reads.
    Raises: CompressionError: a layer's weight is NaN or infinite, or not a parameter.
    """
    network = sliced_copy(state.network, state.kept)
    layers = (maskable_layers if masked else compressible_layers)(network, state.example)
    for name in layers:
        if "weight" not in dict(network.get_submodule(name).named_parameters(recurse=False)):
            raise CompressionError(
                f"layer '{name}': expected the weight to be a parameter. Got one that a hook computes. Remove the hook "
                f"and make it a parameter: layer.weight = torch.nn.Parameter(layer.weight.detach())."
            )
    masks = {name: slice_mask(mask, state.kept, name) for name, mask in state.masks.items()}
    counted = count(network, state.example, masks)
    weights = {parameter_name(n): 0 if info.kind == "embedding" else info.positions for n, info in layers.items()}
    if masked:
        weights = _with_matrices(network, weights, counted)
    for name in weights:
        _check_values(shown(name), network.get_parameter(name))
    return Start(state, network, masks, layers, counted, weights)


def _with_matrices(network: nn.Module, weights: Mapping[str, int], counted: Count) -> dict[str, int]:
    """These weights, and all other floating-point matrices that a forward pass reads, in network order."""
    flops = {network.get_parameter(name): work for name, work in counted.read.items()}
    for name, layer in counted.layers.items():
        own = network.get_submodule(name)._parameters.get("weight")
        if own is not None:
            flops[own] = flops.get(own, 0) + layer.flops
    every = network.named_parameters(remove_duplicate=False)
    fixed = {p for n, p in every if not (is_matrix(p) and p.is_floating_point() and may_be_computed(network, n))}
    found = {}
    for name, parameter in network.named_parameters():
        if name in weights:
            found[name] = weights[name]
        elif parameter in flops and parameter not in fixed:
            found[name] = flops[parameter] // parameter.numel()
    return found


def parameter_name(layer: str, parameter: str = "weight") -> str:
    """The dotted name of a layer's parameter; the name of the network itself as a layer is ''."""
    return f"{layer}.{parameter}" if layer else parameter


def live_weight(network: nn.Module, masks: Mapping[str, Tensor], layer: str) -> Tensor:
    """A layer's weight with masked elements at zero."""
    weight = network.get_submodule(layer).get_parameter("weight").detach()
    mask = masks.get(parameter_name(layer))
    return weight if mask is None else weight * mask.to(weight.device)


def live_filters(network: nn.Module, masks: Mapping[str, Tensor], layer: str) -> Tensor:
    """The same as filters: (F, C / groups, *kernel)."""
    return filters_of(network.get_submodule(layer), live_weight(network, masks, layer))


def factored_layers(state: State, plan: Plan) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name, module and live filters of every layer that becomes factors, without the removed channels.

    Layers that use the factors of another one are left out.
    """
    network = sliced_copy(state.network, plan.kept)
    masks = {name: slice_mask(mask, plan.kept, name) for name, mask in state.masks.items()}
    for name, leader in leaders(network, plan.decomposed).items():
        if name == leader:
            yield name, network.get_submodule(name), live_filters(network, masks, name)


def _check_values(name: str, weight: Tensor) -> None:
    bad = sum(int((~part.isfinite()).sum()) for part in torch.split(weight.detach().reshape(-1), 2**24))
    if bad:
        raise CompressionError(
            f"layer '{name}': weights must be finite. Got {bad:,} of {weight.numel():,} that are NaN or infinite: the "
            f"network diverged in training, or its file is damaged. Train or load it again."
        )
