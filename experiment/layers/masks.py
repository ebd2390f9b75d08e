"""Masks: a buffer behind a parametrization of the weight, which holds weights at zero.

`weight = original * mask` is computed at every use. So masked weights stay zero with any optimizer, momentum and weight
decay included, and the mask is part of deepcopy and state_dict.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiment.errors import CompressionError
from experiment.layers.copied_network import copied
from experiment.layers.quantized_weights import Quantized, attach, make_plain, named_dtypes


class Mask(nn.Module):
    """Multiplies a weight by a 0/1 mask of its shape, which is never written to: a file brings a new one."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool).contiguous())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.mask = torch.empty_like(self.mask)
        super()._load_from_state_dict(*args, **kwargs)


def add_masks(network: nn.Module, masks: Mapping[str, Tensor], *, unfilled: bool = False) -> None:
    """Set the False places of every named parameter to zero and hold them there, in place.

    If a parameter is masked already, both masks apply. A parameter that several modules share is masked in all of them.

    Args:
        unfilled: whether the weights are still to be written. Then masked ones keep their values until they are, and
            the masks are not copied: the caller must not change them.
    Raises: CompressionError: a mask does not have the shape of its parameter.
    """
    sharing = _shared(network) if masks else {}
    for name, mask in masks.items():
        module_name, _, parameter_name = name.rpartition(".")
        module = network.get_submodule(module_name)
        parameter = stored(module, parameter_name)
        earlier = _masks_of(module).get(parameter_name)
        if mask.shape != parameter.shape:
            shapes = f"{tuple(parameter.shape)}, its mask {tuple(mask.shape)}"
            raise CompressionError(f"{name}: has shape {shapes}. Expected a mask of the parameter's shape.")
        mask = mask.to(parameter.device, torch.bool)
        if not unfilled:
            parameter.detach().masked_fill_(~mask, 0)
        if earlier is not None:
            earlier.mask = earlier.mask & mask
            continue
        link = Mask(mask if unfilled else mask.clone())
        for holder, key in sharing.get(parameter, [(module, parameter_name)]):
            attach(holder, key, link)


def named_masks(network: nn.Module) -> dict[str, Tensor]:
    """Parameter name (as in the plain network) -> its mask."""
    return {
        f"{name}.{parameter_name}" if name else parameter_name: link.mask
        for name, module in network.named_modules()
        for parameter_name, link in _masks_of(module).items()
    }


def same_support(network: nn.Module, other: nn.Module) -> bool:
    """Whether two compressed forms of one network have the same shapes, masks and dtypes."""
    shapes, other_shapes = (
        {plain_name(name): parameter.shape for name, parameter in n.named_parameters()} for n in (network, other)
    )
    if shapes != other_shapes or named_dtypes(network) != named_dtypes(other):
        return False
    masks, other_masks = named_masks(network), named_masks(other)
    for name in masks.keys() | other_masks.keys():
        mask, other_mask = (m.get(name, torch.tensor(True)).cpu() for m in (masks, other_masks))
        if not bool((mask == other_mask).all()):
            return False
    return True


def plain_name(name: str) -> str:
    """The name of a parameter without those of its parametrizations."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def stored(module: nn.Module, name: str) -> nn.Parameter:
    """A module's parameter, or the original one behind its mask or rounding."""
    return module.get_parameter(_original(name) if name in _links_of(module) else name)


def write_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Write into a module's parameter, in place; masked elements become zero."""
    link = _masks_of(module).get(name)
    with torch.no_grad():
        own = stored(module, name)
        if link is not None and value.device == own.device == link.mask.device and value.dtype == own.dtype:
            torch.mul(value, link.mask, out=own.detach())
        else:
            own.copy_(value if link is None else value * link.mask.to(value.device))


def bake_masks(network: nn.Module) -> nn.Module:
    """A copy of plain torch layers with masks and rounding applied to the weights. Not for training."""
    baked = copied(network)
    for module in list(baked.modules()):
        for parameter_name in _links_of(module):
            make_plain(module, parameter_name)
    return baked


def _shared(network: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Every parameter that is not behind a parametrization -> the modules that hold it, and its name there."""
    held: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        if not isinstance(module, parametrize.ParametrizationList):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    held.setdefault(parameter, []).append((module, name))
    return held


def _masks_of(module: nn.Module) -> dict[str, Mask]:
    """Parameter name -> its mask, for the parameters of this module alone."""
    found = ((name, link) for name, links in _links_of(module).items() for link in links)
    return {name: link for name, link in found if isinstance(link, Mask)}


def _links_of(module: nn.Module) -> dict[str, list[Mask | Quantized]]:
    """Parameter name -> its masks and rounding, for the parameters of this module alone."""
    if not parametrize.is_parametrized(module):
        return {}
    chains = module.parametrizations
    assert isinstance(chains, nn.ModuleDict)
    links = {n: [link for link in c.children() if isinstance(link, Mask | Quantized)] for n, c in chains.items()}
    return {name: found for name, found in links.items() if found}


def _original(parameter_name: str) -> str:
    """The name of the parameter behind a parametrization, relative to its module."""
    return f"parametrizations.{parameter_name}.original"
