"""Folds what removed channels emitted, on average or without their filters, into the layers that read them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs
from experiment.layers.channels.channel_axes import channel_dim
from experiment.layers.channels.group_data import ChannelGroup, Member, alive_channels
from experiment.layers.channels.streams import constants_of
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.masks import stored
from experiment.layers.plan import Kept

SAMPLES = 32  # in one forward pass

Readers = dict[str, tuple[Member, list[int]]]
"""Layer name -> its side that reads removed channels, and their positions there."""


@dataclass(frozen=True)
class Folded:
    """Where a constant was folded that increases a layer's output.

    Attributes:
        place: the layer's bias or the running mean of the BatchNorm behind it, one value per filter that stays.
        sign: +1 for a bias, -1 for a running mean.
        behind: what the layer's own output lacks, because the constant is folded behind it; zero for a bias.
    """

    place: Tensor
    sign: int
    behind: Tensor


def fold_constants(
    sliced: nn.Module, network: nn.Module, example: Inputs, groups: Sequence[ChannelGroup], kept: Mapping[str, Kept]
) -> dict[str, Folded]:
    """Make `sliced`, in place, compute what the network computes when only the filters of removed channels are zero.

    Such a channel q still emits a constant v_q: act(bias), or behind BatchNorm act(beta - gamma mean / std). The
    response of a reader to it, sum_{u,v} W[:, q, u, v] v_q, is subtracted from the running mean of the BatchNorm that
    alone reads the reader's output or, if there is none, added to the reader's bias; a reader without either loses it.
    This is exact without zero padding. With padding the response is smaller at the borders, and its mean over the
    positions is used.

    Args:
        sliced: `network` without the channels that `kept` leaves out, holding its weights.
        network: the original network; not modified.
        example: a batch for which the constants are measured.
    Returns: layer name -> where its constant went.
    """
    ghost = copy.deepcopy(network)
    for group, gone in _gone(groups, kept):
        for member in group.members:
            if member.side == "out" and member.module in group.producers:
                with torch.no_grad():
                    weight = ghost.get_submodule(member.module).get_parameter("weight")
                    weight.transpose(0, 1 if member.swapped else 0)[_places(member, gone)] = 0
    readers = _readers(ghost, groups, kept)
    _set_constants(sliced, ghost, example, kept)
    return _fold(sliced, readers, _responses(ghost, example, readers), kept)


def fold_means(
    sliced: nn.Module, network: nn.Module, inputs: Inputs, groups: Sequence[ChannelGroup], kept: Mapping[str, Kept]
) -> dict[str, Folded]:
    """Make the readers in `sliced`, in place, compute on average what they computed with the removed channels.

    The response of a reader to the removed channels q of the original network, sum_{q,u,v} W[:, q, u, v] a_q, is
    averaged over data and positions, and folded as in `fold_constants`. This is exact for channels that are
    constant on the data, zero padding aside.

    Args:
        sliced: `network` without the channels that `kept` leaves out, holding its weights.
        network: the original network; not modified.
        inputs: calibration data on the network's device.
    Returns: layer name -> where its constant went.
    """
    readers = _readers(network, groups, kept)
    _set_constants(sliced, network, inputs, kept)
    return _fold(sliced, readers, _responses(network, inputs, readers), kept)


def _gone(groups: Sequence[ChannelGroup], kept: Mapping[str, Kept]) -> list[tuple[ChannelGroup, list[int]]]:
    """The groups that lost channels, with the lost channels."""
    pairs = zip(groups, alive_channels(groups, kept), strict=True)
    return [(group, sorted(set(range(group.size)) - set(alive))) for group, alive in pairs if len(alive) < group.size]


def _places(member: Member, channels: Sequence[int]) -> list[int]:
    return [place for channel in channels for place in member.positions[channel]]


def _readers(network: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Kept]) -> Readers:
    """The layers that read removed channels; a grouped layer has lost the filters that would."""
    readers: Readers = {}
    for group, _ in _gone(groups, kept):
        for member in group.members:
            inputs = kept.get(member.module, Kept()).inputs if member.side == "in" else None
            if inputs is not None and getattr(network.get_submodule(member.module), "groups", 1) == 1:
                readers[member.module] = (member, sorted(set(range(member.size)) - set(inputs)))
    return readers


def _set_constants(sliced: nn.Module, network: nn.Module, inputs: Inputs, kept: Mapping[str, Kept]) -> None:
    """Set what removed channels leave in a sum to their mean in this network, in place."""
    held = {name: (channels, constants) for name, channels, constants in constants_of(sliced, kept)}
    numbers = dict.fromkeys(held, 0)
    sums = {name: torch.zeros_like(constants) for name, (_, constants) in held.items()}

    def record(call: Call) -> None:
        y = call.output.movedim(channel_dim(call.module, call.output), 0).flatten(1)[held[call.name][0]]
        numbers[call.name] += y.shape[1]
        sums[call.name] += y.sum(1)

    if held:
        layers = {name: network.get_submodule(name) for name in held}
        observed_pass(network, layers, inputs, batch_size=SAMPLES, after=record)
    with torch.no_grad():
        for name, (_, constants) in held.items():
            constants.copy_(sums[name] / max(numbers[name], 1))


def _responses(network: nn.Module, inputs: Inputs, readers: Readers) -> dict[str, Tensor]:
    """Every reader's response to the removed channels alone, without bias: (out,), mean over samples and positions.

    A layer is affine, so its response to the mean of all samples suffices.
    """
    layers = {name: network.get_submodule(name) for name in readers}
    sums: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in readers}  # outputs per filter, and their sum

    def record(call: Call) -> None:
        module, x, y = call.module, call.input, call.output
        dim = channel_dim(module, x)
        mean = x.reshape(-1, *x.shape[dim:]).mean(0, keepdim=True)
        places = torch.tensor(readers[call.name][1], device=x.device)
        alone = torch.zeros_like(mean).index_copy(dim, places, mean.index_select(dim, places))
        response = module.forward(alone) - module.forward(torch.zeros_like(alone))
        number = y.numel() // y.shape[dim]
        sums[call.name].append((number, number * response.movedim(dim, -1).flatten(0, -2).mean(0)))

    observed_pass(network, layers, inputs, batch_size=SAMPLES, after=record)
    return {
        name: torch.stack([total for _, total in calls]).sum(0) / sum(number for number, _ in calls)
        for name, calls in sums.items()
        if calls
    }


def _fold(
    sliced: nn.Module, readers: Readers, shifts: Mapping[str, Tensor], kept: Mapping[str, Kept]
) -> dict[str, Folded]:
    modules, folded = dict(sliced.named_modules()), dict[str, Folded]()
    for name, shift in shifts.items():
        rows = kept[name].out
        part = shift if rows is None else shift[list(rows)]
        norm = modules.get(readers[name][0].norm or "")
        bias = None if modules[name].bias is None else stored(modules[name], "bias")
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_mean is not None:
            folded[name] = Folded(norm.running_mean, -1, part)
        elif bias is not None:
            folded[name] = Folded(bias, 1, torch.zeros_like(part))
        else:
            continue
        with torch.no_grad():
            folded[name].place.add_(folded[name].sign * part)
    return folded
