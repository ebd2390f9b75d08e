"""What removed channels would still emit through biases and BatchNorm shifts, folded into the layers that read it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from experiment.layers.groups import ChannelGroup, Member, alive_channels
from experiment.layers.inspect import evaluating
from experiment.layers.plan import Kept


def fold_ghosts(
    sliced: nn.Module, network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup], kept: Mapping[str, Kept]
) -> None:
    """Let `sliced`, in place, stand for the network in which only the filters of the removed channels are zero.

    Such a channel q still emits a constant v_q: act(bias), behind BatchNorm act(beta - gamma mean / std), which may be
    far from what it emitted when its filter was there. What a reader makes of it, sum_{u,v} W[:, q, u, v] v_q, is taken
    from the running mean of the BatchNorm that alone reads the reader's output or, where there is none, added to the
    reader's bias; a reader without either loses it. Without zero padding the output is exactly that network's. With
    padding the response falls off at the borders, and its mean over the positions stands for it.

    Args:
        sliced: `network` without the channels that `kept` leaves out, holding its weights.
        network: the original network; not modified.
        example: the constants are measured while this batch passes.
    """
    ghost = copy.deepcopy(network)
    readers = _zero_filters(ghost, groups, kept)
    shifts = _responses(ghost, example, readers)
    modules = dict(sliced.named_modules())
    for name, shift in shifts.items():
        rows = kept[name].out
        part = shift if rows is None else shift[list(rows)]
        norm = modules.get(readers[name][0].norm or "")
        with torch.no_grad():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_mean is not None:
                norm.running_mean -= part
            elif dict(modules[name].named_parameters()).get("bias") is not None:
                modules[name].get_parameter("bias").add_(part)


def _zero_filters(
    ghost: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Kept]
) -> dict[str, tuple[Member, list[int]]]:
    """Zero the filters of the removed channels, in place; returns the layers that read them, and where."""
    modules, readers = dict(ghost.named_modules()), dict[str, tuple[Member, list[int]]]()
    for group, alive in zip(groups, alive_channels(groups, kept), strict=True):
        gone = sorted(set(range(group.size)) - set(alive))
        for member in group.members if gone else ():
            places = [place for channel in gone for place in member.positions[channel]]
            module = modules[member.module]
            if member.side == "out" and member.module in group.producers:
                with torch.no_grad():
                    module.get_parameter("weight")[places] = 0
            elif member.side == "in" and not (isinstance(module, nn.Conv2d) and module.groups > 1):
                readers.setdefault(member.module, (member, []))[1].extend(places)
    return readers


def _responses(ghost: nn.Module, example: Tensor, readers: Mapping[str, tuple[Member, list[int]]]) -> dict[str, Tensor]:
    """What every reader makes of the removed channels alone, bias aside: (out,), mean over samples and positions."""
    names = {ghost.get_submodule(name): name for name in readers}
    responses: dict[str, list[Tensor]] = {name: [] for name in readers}  # one a call of the reader

    def record(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        (x,) = inputs
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        places = torch.tensor(readers[names[module]][1], device=x.device)
        alone = torch.zeros_like(x).index_copy(dim, places, x.index_select(dim, places))
        response = module.forward(alone) - module.forward(torch.zeros_like(alone))
        responses[names[module]].append(response.movedim(dim, -1).flatten(0, -2).mean(0))

    handles = [module.register_forward_hook(record) for module in names]
    with evaluating(ghost):
        ghost(example)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(calls).mean(0) for name, calls in responses.items() if calls}
