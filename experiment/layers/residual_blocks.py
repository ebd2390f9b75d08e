"""Finds residual blocks that can be removed: y = x + f(x), optionally followed by a ReLU, with an identity shortcut."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs, over_samples
from experiment.layers.channels.check_slicing import randomised
from experiment.layers.forward_pass import Call, evaluating, observed_pass, observing
from experiment.layers.skipped_blocks import first_tensor
from experiment.random_streams import generator
from experiment.tensor_file import load_tensors

_LAYERS = (nn.Conv2d, nn.Linear)
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
    calls = _calls(probe, _drawn(example))
    with evaluating(probe):
        for name, call in calls.items():
            module, given = probe.get_submodule(name), first_tensor(call.args, dict(call.named))
            before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
            silence(module)
            answer = _again(call)
            load_tensors(module, before)
            if isinstance(answer, Tensor) and answer.shape == given.shape and torch.equal(answer, given):
                found.append(name)
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def block_branches(network: nn.Module, example: Inputs, blocks: Sequence[str]) -> dict[str, dict[str, int]]:
    """The branches of blocks that have several, such as attention and feed-forward: f and g in x + f(x) + g(x + f(x)).

    They are the outermost modules with layers in a block such that the block is the identity if all of them return
    zeros, and adds a multiple of the output of any one if the others do.

    Args:
        blocks: what `residual_blocks` found.
    Returns: block -> branch -> its number of outputs, 0 if it is no tuple.
    """
    probe = randomised(network)
    calls, found = _calls(probe, _drawn(example), inner=True), dict[str, dict[str, int]]()
    with evaluating(probe):
        for block in blocks:
            among = [name for name in calls if name.startswith(f"{block}.")]
            outermost = [name for name in among if not any(name.startswith(f"{other}.") for other in among)]
            forms = {name: _form(calls[name]) for name in outermost}
            known = {name: form for name, form in forms.items() if form is not None}
            if len(known) > 1 and known.keys() == forms.keys() and _add_up(probe, calls[block], known):
                found[block] = known
    return found


def _drawn(example: Inputs) -> Inputs:
    """Several random inputs of the example's form; copies of its first one where they are integers."""
    random = generator("blocks")

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor[:1].expand(SAMPLES, *tensor.shape[1:])
        return torch.randn((SAMPLES, *tensor.shape[1:]), generator=random).to(tensor)

    return over_samples(example, drawn)


def _add_up(probe: nn.Module, call: Call, branches: Mapping[str, int]) -> bool:
    """Whether a block is the identity without these branches, and linear in the output of each."""
    x = first_tensor(call.args, dict(call.named))
    modules = {name: probe.get_submodule(name) for name in branches}

    def answer(name: str, scale: float) -> Tensor:
        def change(inner: Call) -> Any:
            output = inner.output[0] if branches[inner.name] else inner.output
            scaled = output * (scale if inner.name == name else 0)
            return (scaled, *[None] * (branches[inner.name] - 1)) if branches[inner.name] else scaled

        with observing(modules, after=change):
            output = _again(call)
        return output if isinstance(output, Tensor) else torch.full_like(x, torch.nan)

    for name in branches:
        none, once, twice = (answer(name, scale) - x for scale in (0.0, 1.0, 2.0))
        if none.any() or not once.any() or not torch.allclose(twice, 2 * once, rtol=1e-3, atol=1e-4):
            return False
    return True


def _form(call: Call) -> int | None:
    """The number of outputs of a call, 0 for a tensor; None if the first one has not the input's form."""
    x, y = first_tensor(call.args, dict(call.named)), call.output
    several = isinstance(y, tuple) and len(y) > 0
    first = y[0] if several else y
    same = isinstance(first, Tensor) and first.shape == x.shape and first.dtype == x.dtype
    return (len(y) if several else 0) if same else None


def _again(call: Call) -> Any:
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


def _calls(network: nn.Module, x: Inputs, *, inner: bool = False) -> dict[str, Call]:
    """The calls of modules that are called once with a tensor, and hold parameters and layers of their own.

    Args:
        inner: also those that are a layer themselves.
    """
    everywhere: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        everywhere.setdefault(id(parameter), []).append(name)
    modules, calls = dict[str, nn.Module](), dict[str, list[Call]]()
    for name, module in network.named_modules():
        own = all(inside(n, [name]) for parameter in module.parameters() for n in everywhere[id(parameter)])
        if name and own and any(isinstance(m, _LAYERS) for m in module.modules() if inner or m is not module):
            modules[name] = module

    def keep(call: Call) -> None:
        args, named = copy.deepcopy((call.args, dict(call.named)))
        calls.setdefault(call.name, []).append(replace(call, args=args, named=named))

    def complete(call: Call) -> None:
        calls[call.name][-1] = replace(calls[call.name][-1], output=call.output)

    observed_pass(network, modules, x, before=keep, after=complete)
    once = {name: calls[name][0] for name in modules if len(calls.get(name, ())) == 1}
    return {
        name: call
        for name, call in once.items()
        if any(isinstance(value, Tensor) for value in (*call.args, *call.named.values()))
    }
