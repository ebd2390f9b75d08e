"""The starting state of a method: the layers that may be compressed, their remaining weights, and all costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import build, slice_mask, sliced_copy
from experiment.layers.compressible import (
    LayerInfo,
    compressible_layers,
    filters_of,
    leaders,
    maskable_layers,
)
from experiment.layers.plan import Detail, Plan, State
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
    """

    state: State
    network: nn.Module
    masks: Mapping[str, Tensor]
    layers: Mapping[str, LayerInfo]
    count: Count

    def cost(self, quantity: Quantity) -> int:
        """The whole state's unmasked parameters or multiply-adds."""
        return self.count.parameters if quantity == "parameters" else self.count.flops_unmasked

    def layer_cost(self, name: str, quantity: Quantity) -> int:
        """A layer's unmasked parameters, bias included, or unmasked multiply-adds; with those of its tied layers."""
        names = [name, *(tied.name for tied in self.layers[name].tied)] if name in self.layers else [name]
        layers = [self.count.layers[n] for n in names if n in self.count.layers]
        return sum(n.parameters if quantity == "parameters" else n.flops_unmasked for n in layers)

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
            transposed, 1-d and 3-d convolutions.
    Raises: CompressionError: a layer's weight is NaN or infinite, or not a parameter.
    """
    network = sliced_copy(state.network, state.kept)
    layers = (maskable_layers if masked else compressible_layers)(network, state.example)
    for name in layers:
        _check_weight(name, network.get_submodule(name))
    return Start(
        state=state,
        network=network,
        masks={name: slice_mask(mask, state.kept, name) for name, mask in state.masks.items()},
        layers=layers,
        count=count(build(state.network, Plan(masks=state.masks, kept=state.kept)), state.example),
    )


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
    for name, leader in leaders(network, plan.factors).items():
        if name == leader:
            yield name, network.get_submodule(name), live_filters(network, masks, name)


def _check_weight(name: str, layer: nn.Module) -> None:
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None:
        raise CompressionError(
            f"layer '{name}': expected the weight to be a parameter. Got one that a hook computes. Remove the hook and "
            f"make it a parameter: layer.weight = torch.nn.Parameter(layer.weight.detach())."
        )
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise CompressionError(
            f"layer '{name}': weights must be finite. Got {bad:,} of {weight.numel():,} that are NaN or infinite: the "
            f"network diverged in training, or its file is damaged. Train or load it again."
        )
