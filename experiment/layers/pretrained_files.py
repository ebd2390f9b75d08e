"""Whether the files of Hugging Face's transformers can hold a compressed network.

`from_pretrained` makes the network that the config describes and fills what the file does not name with random numbers.
A config has one number for all layers and knows no factors, so that it cannot describe every compressed network.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from experiment.errors import log, shortened


def watch_saving(network: nn.Module) -> nn.Module:
    """Let the network's `save_pretrained`, if it has one, warn if `from_pretrained` would make another network."""
    if callable(getattr(type(network), "save_pretrained", None)):
        vars(network)["save_pretrained"] = partial(_save, network)
    return network


def _save(network: Any, *arguments: Any, **named: Any) -> Any:
    if (difference := difference_to_config(network)) is not None:
        log.warning(
            "save_pretrained: from_pretrained will not give this network, since its config describes another one "
            "(%s). Use experiment.save_network; for masks and quantization also experiment.bake.",
            difference,
        )
    return type(network).save_pretrained(network, *arguments, **named)


def difference_to_config(network: Any) -> str | None:
    """The first difference between a network of transformers (here) and that of its config (there); None without.

    Compared are the shapes of all tensors and the numbers that modules keep, such as scales.
    """
    try:
        with torch.device("meta"):
            described = type(network)(copy.deepcopy(network.config))
    except Exception as error:  # transformers checks some numbers of a config when a layer is made
        return f"it is refused ({shortened(str(error).strip())})"
    shapes, others = ({n: tuple(t.shape) for n, t in net.state_dict().items()} for net in (network, described))
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            return f"{name}: {shapes.get(name, 'none')} here, {others.get(name, 'none')} there"
    modules = dict(described.named_modules())
    for name, module in network.named_modules():
        numbers = {key: value for key, value in vars(module).items() if type(value) in (int, float)}
        theirs = vars(modules.get(name, module))
        for key, value in numbers.items():
            if type(theirs.get(key)) in (int, float) and theirs[key] != value:
                return f"{f'{name}.{key}' if name else key}: {value} here, {theirs[key]} there"
    return None
