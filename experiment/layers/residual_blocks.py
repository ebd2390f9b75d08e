"""Finds residual blocks that can be removed: y = x + f(x), optionally followed by a ReLU, with an identity shortcut."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs, over_samples
from experiment.layers.channels.check_slicing import randomised
from experiment.layers.forward_pass import Call, evaluating, observed_pass
from experiment.random_streams import generator

SAMPLES = 4  # inputs that a block is tried with


def residual_blocks(network: nn.Module, example: Inputs) -> list[str]:
    """The innermost modules that return their input unchanged if all their parameters are zero, in module order.

    In a copy with random weights, every module that contains a convolution or linear layer, and that a forward pass
    calls once with one tensor, is called again with zero parameters. A ReLU after the sum preserves the output of an
    earlier ReLU. Blocks with weights on the shortcut, or with parameters shared with other modules, are not found.

    Args:
        network: not modified.
        example: an input batch that the network takes, on its device.
    """
    probe = randomised(network)
    found, random = list[str](), generator("blocks")

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor[:1].expand(SAMPLES, *tensor.shape[1:])
        return torch.randn((SAMPLES, *tensor.shape[1:]), generator=random).to(tensor)

    inputs = _inputs(probe, over_samples(example, drawn))
    with evaluating(probe):
        for name, given in inputs.items():
            module = probe.get_submodule(name)
            before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
            silence(module)
            answer = module(given.clone())
            module.load_state_dict(before)
            if isinstance(answer, Tensor) and answer.shape == given.shape and torch.equal(answer, given):
                found.append(name)
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


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


def _inputs(network: nn.Module, x: Inputs) -> dict[str, Tensor]:
    """The input of every module that may be a block."""
    everywhere: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        everywhere.setdefault(id(parameter), []).append(name)
    modules, calls = dict[str, nn.Module](), dict[str, list[Tensor | None]]()
    for name, module in network.named_modules():
        own = all(inside(n, [name]) for parameter in module.parameters() for n in everywhere[id(parameter)])
        if name and own and any(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules() if m is not module):
            modules[name] = module

    def record(call: Call) -> None:
        alone = len(call.args) == 1 and not call.named and isinstance(call.input, Tensor)
        calls.setdefault(call.name, []).append(call.input.clone() if alone else None)

    observed_pass(network, modules, x, before=record)
    once = {name: given[0] for name, given in calls.items() if len(given) == 1}
    return {name: given for name, given in once.items() if given is not None}
