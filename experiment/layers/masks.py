"""Zeros that stay: a mask buffer behind a parametrization of the weight.

`weight = original * mask` is computed at every use, so gradient, momentum and weight decay alike leave a masked weight at
zero, whatever optimizer trains the network, and the mask travels with deepcopy and state_dict.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Mask(nn.Module):
    """Multiplies a weight by a fixed 0/1 mask of its shape."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def add_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hold the False places of every named parameter at zero, in place; what stood there is overwritten with zero."""
    for name, mask in masks.items():
        module_name, _, parameter_name = name.rpartition(".")
        module = network.get_submodule(module_name)
        parameter = module.get_parameter(parameter_name)
        with torch.no_grad():
            parameter.mul_(mask.to(parameter.device))
        parametrize.register_parametrization(module, parameter_name, Mask(mask.to(parameter.device)), unsafe=True)


def named_masks(network: nn.Module) -> dict[str, Tensor]:
    """Parameter name (as on the plain network) -> its mask, for every mask in the network."""
    found = {}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module):
            parametrizations = module.parametrizations
            assert isinstance(parametrizations, nn.ModuleDict)
            for parameter_name, chain in parametrizations.items():
                for link in chain.children():
                    if isinstance(link, Mask):
                        found[f"{name}.{parameter_name}" if name else parameter_name] = link.mask
    return found


def bake_masks(network: nn.Module) -> nn.Module:
    """A copy of plain torch layers whose masked weights are ordinary zeros: for export, no longer for training."""
    baked = copy.deepcopy(network)
    for name in named_masks(network):
        module_name, _, parameter_name = name.rpartition(".")
        parametrize.remove_parametrizations(baked.get_submodule(module_name), parameter_name)
    return baked
