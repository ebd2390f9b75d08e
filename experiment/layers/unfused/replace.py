"""Replaces fused modules by equivalents of plain layers, and converts their state_dicts.

Left as they are, since their matrices belong to layers that are called: timm's attention with one `qkv` layer,
torchvision's MaxViT, the attention of Hugging Face's transformers. A low-rank or masked `qkv` is one matrix there.
"""

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from experiment.errors import CompressionError, shortened
from experiment.layers.compressible import holders
from experiment.layers.unfused import experts, linear, multihead_attention, switches, window_attention
from experiment.layers.unfused.family import Family, Tensors

FAMILIES: Mapping[str, Family] = {
    "switch": switches.FAMILY,
    "multihead_attention": multihead_attention.FAMILY,
    "window_attention": window_attention.FAMILY,
    "experts": experts.FAMILY,
    "conv1d": linear.CONV1D,
    "linear": linear.LINEAR,
}


def fused_modules(network: nn.Module) -> dict[str, str]:
    """Name -> family of every module that can be unfused.

    Subclasses with code of their own are left out, and modules that share reshaped parameters with others.
    """
    held = holders(network)
    return {
        name: key
        for name, module in network.named_modules()
        for key, family in FAMILIES.items()
        if family.is_fused(module)
        and not (family.reshapes and any(len(held[parameter]) > 1 for parameter in module.parameters()))
    }


def unfused(network: nn.Module, families: Mapping[str, str]) -> nn.Module:
    """The network with these modules unfused; the network itself if they are already.

    Otherwise it is a copy of the modules that shares all parameters and buffers with the original, or views them.

    Args:
        families: module name -> family.
    Raises: CompressionError: a family is unknown, or a module is missing or of another kind.
    """
    if not families:
        return network
    modules, todo = dict(network.named_modules()), []
    for name, key in families.items():
        family, module = FAMILIES.get(key), modules.get(name)
        if family is None:
            known = ", ".join(FAMILIES)
            raise CompressionError(f"'{shortened(name)}': unknown family '{shortened(key)}'. Expected one of {known}.")
        if module is None or not (family.is_fused(module) or family.is_unfused(module)):
            what = f"no '{shortened(name)}'" if module is None else f"a {type(module).__name__} as '{shortened(name)}'"
            raise CompressionError(f"the plan belongs to another network: this one has {what}, expected '{key}'.")
        if family.is_fused(module):
            todo.append((name, family))
    if not todo:
        return network
    values = (v for m in modules.values() for held in (m._parameters, m._buffers, vars(m)) for v in held.values())
    made = copy.deepcopy(network, {id(value): value for value in values if isinstance(value, Tensor)})
    for name, family in todo:
        family.unfuse(made.get_submodule(name))
    return made


def split_state(state: Tensors, families: Mapping[str, str]) -> dict[str, Tensor]:
    """A state_dict of the original network, or masks of its parameters, for the unfused network; in views.

    Tensors of another shape than a fused module has keep their names, for the error of `load_state_dict`.
    """
    return _converted(state, {name: FAMILIES[key].split for name, key in families.items()})


def join_state(state: Tensors, families: Mapping[str, str]) -> dict[str, Tensor]:
    """The inverse of `split_state`: a state_dict of the unfused network for the original one."""
    return _converted(state, {name: FAMILIES[key].join for name, key in families.items()})


def _converted(state: Tensors, changes: Mapping[str, Callable[[Tensors], dict[str, Tensor]]]) -> dict[str, Tensor]:
    found = dict(state)
    for name, change in changes.items():
        prefix = f"{name}." if name else ""
        own = {full.removeprefix(prefix): found.pop(full) for full in list(found) if full.startswith(prefix)}
        found |= {prefix + inner: tensor for inner, tensor in change(own).items()}
    return found
