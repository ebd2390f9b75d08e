"""Finds residual blocks that can be removed: y = x + f(x), optionally followed by a ReLU, with an identity shortcut."""

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs, over_samples
from experiment.layers.channels.check_slicing import randomised
from experiment.layers.forward_pass import Call, evaluating, observed_pass
from experiment.layers.skipped_blocks import first_tensor
from experiment.random_streams import generator
from experiment.tensor_file import load_tensors

LAYERS = (nn.Conv2d, nn.Linear)
SAMPLES = 4  # inputs that a block is tried with


def residual_blocks(network: nn.Module, example: Inputs) -> list[str]:
    """The innermost modules that return their input unchanged if all their parameters are zero, in module order.

    In a copy with random weights, every module that contains a convolution or linear layer, and that a forward pass
    calls once, is called again with zero parameters. A ReLU after the sum preserves the output of an
    earlier ReLU. Blocks with weights on the shortcut, or with parameters shared with other modules, are not found.

    Args:
        network: not modified.
        example: an input batch that the network takes, on its device.
    """
    probe, found = randomised(network), list[str]()
    calls = once_called(probe, drawn(example))
    with evaluating(probe):
        for name, call in calls.items():
            module, given = probe.get_submodule(name), first_tensor(call.args, dict(call.named))
            before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
            silence(module)
            answer = again(call)
            load_tensors(module, before)
            if isinstance(answer, Tensor) and answer.shape == given.shape and torch.equal(answer, given):
                found.append(name)
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def drawn(example: Inputs) -> Inputs:
    """Several random inputs of the example's form; copies of its first one where they are integers."""
    random = generator("blocks")

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor[:1].expand(SAMPLES, *tensor.shape[1:])
        return torch.randn((SAMPLES, *tensor.shape[1:]), generator=random).to(tensor)

    return over_samples(example, drawn)


def again(call: Call) -> Any:
    """Call a module once more with the same arguments."""
    args, named = copy.deepcopy((call.args, dict(call.named)))
    return call.module(*args, **named)


def silence(module: nn.Module) -> None:
    """Set all parameters of a module to zero, in place, so that y = x + f(x) becomes x."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
            elif name.endswith("running_var"):
                buffer.fill_(1)


def inside(name: str, modules: Collection[str]) -> bool:
    """Whether the name of a module or parameter is one of these modules or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def once_called(network: nn.Module, x: Inputs) -> dict[str, Call]:
    """The calls of modules that are called once with a tensor, and contain layers whose parameters are their own."""
    everywhere: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        everywhere.setdefault(id(parameter), []).append(name)
    modules, calls = dict[str, nn.Module](), dict[str, list[Call]]()
    for name, module in network.named_modules():
        own = all(inside(n, [name]) for parameter in module.parameters() for n in everywhere[id(parameter)])
        if name and own and any(isinstance(m, LAYERS) for m in module.modules() if m is not module):
            modules[name] = module

    def keep(call: Call) -> None:
        args, named = copy.deepcopy((call.args, dict(call.named)))
        calls.setdefault(call.name, []).append(replace(call, args=args, named=named))

    observed_pass(network, modules, x, before=keep)
    once = {name: calls[name][0] for name in modules if len(calls.get(name, ())) == 1}
    return {
        name: call
        for name, call in once.items()
        if any(isinstance(value, Tensor) for value in (*call.args, *call.named.values()))
    }
