"""Filters by any importance of the package torch-pruning, or by one of your own with its interface."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from experiment.errors import CompressionError, ConfigError, kind_of
from experiment.inputs import batch_size, call_network, device_of, moved_like, split
from experiment.layers.channels.group_data import ChannelGroup
from experiment.layers.forward_pass import evaluating
from experiment.methods.base import Calibration
from experiment.methods.filters.allocation import scored
from experiment.methods.filters.base import Channels, ChannelScores, FilterMethod, has_data
from experiment.methods.filters.settings import TorchPruningSettings
from experiment.random_streams import seeded_by
from experiment.registry import resolve

GRADIENTS = ("Taylor", "Hessian")  # in the names of classes that read gradients
OTHERS = ("OBDC", "Activation")  # that need hooks of their own during a forward pass


def torch_pruning(settings: TorchPruningSettings) -> FilterMethod:
    """The channels of largest importance in torch-pruning's sense, in this package's groups and budgets.

    An importance is called with every group of channels that can only be removed together: the layers that make them,
    norms, and layers that read them. Those of Taylor and Hessian kind read gradients of the cross entropy on the
    calibration data, in batches or one sample after the other.

    Source: Fang et al. 2023, DepGraph, https://arxiv.org/abs/2301.12900; isomorphic groups: Fang et al. 2024,
    https://arxiv.org/abs/2407.04616. Differs: groups are found by this package.
    Raises: ConfigError: the class cannot be imported or made.
    """
    made = _importance(settings)

    def score(channels: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        network = copy.deepcopy(channels.state.network)
        if any(word in type(made).__name__ for word in GRADIENTS) or hasattr(made, "accumulate_grad"):
            _take_gradients(network, made, channels, calibration)
        seed = int(torch.randint(2**62, (), generator=generator))
        with seeded_by(seed, device_of(channels.state.example)):
            return [_scores(made, network, group) for group in channels.groups]

    return scored(settings, "TorchPruning", score)


@dataclass(frozen=True)
class _Item:
    """A layer of a group, with the attributes that importances read."""

    dep: Any
    idxs: list[int]
    root_idxs: list[int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.dep, self.idxs))


def _scores(importance: Any, network: nn.Module, group: ChannelGroup) -> Tensor:
    """One score per channel, in float64; zeros for a group that keeps all its channels or has no layer it knows."""
    none = torch.zeros(group.size, dtype=torch.float64)
    if group.exempt is not None:
        return none
    items = list(_items(network, group))
    try:
        found = importance(items)
    except Exception as error:  # any error of the user's class
        raise CompressionError(
            f"{type(importance).__name__} fails on the channels of {', '.join(group.producers)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if found is None:
        return none
    if not isinstance(found, Tensor) or found.dim() != 1 or len(found) < group.size:
        came = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else kind_of(found)
        raise CompressionError(
            f"{type(importance).__name__} must return one number for each of the {group.size} channels of "
            f"{', '.join(group.producers)}. Got {came}."
        )
    return found[: group.size].detach().cpu().double()


def _items(network: nn.Module, group: ChannelGroup) -> Iterator[_Item]:
    """The layers of a group, that which makes the channels first."""
    from torch_pruning.pruner import function

    members = sorted(group.members, key=lambda member: member.side != "out" or member.module != group.name)
    modules = dict(network.named_modules())
    for member in members:
        layer = modules.get(member.module)
        if isinstance(layer, _ConvNd) and layer.groups == layer.in_channels == layer.out_channels:
            if member.side == "in":
                continue
            kind = function.prune_depthwise_conv_out_channels
        elif isinstance(layer, _ConvNd):
            kind = function.prune_conv_out_channels if member.side == "out" else function.prune_conv_in_channels
        elif isinstance(layer, nn.Linear):
            kind = function.prune_linear_out_channels if member.side == "out" else function.prune_linear_in_channels
        elif isinstance(layer, _BatchNorm):
            kind = function.prune_batchnorm_out_channels
        elif isinstance(layer, nn.LayerNorm):
            kind = function.prune_layernorm_out_channels
        else:
            continue
        target = SimpleNamespace(module=layer, name=member.module)
        dep = SimpleNamespace(layer=layer, pruning_fn=kind, handler=kind, target=target, source=target)
        places = [(place, channel) for channel, own in enumerate(member.positions) for place in own]
        yield _Item(dep, [place for place, _ in places], [channel for _, channel in places])


def _take_gradients(network: nn.Module, importance: Any, channels: Channels, calibration: Calibration | None) -> None:
    """Leave the gradients of the cross entropy in all of the network's parameters, or in the importance."""
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # also frozen ones
    name = type(importance).__name__
    if not has_data(calibration) or calibration.targets is None:
        raise CompressionError(f"{name} needs calibration data with class numbers as targets: data=(inputs, targets).")
    inputs, one_by_one = moved_like(calibration.inputs, channels.state.example), hasattr(importance, "accumulate_grad")
    size = 1 if one_by_one else 16
    if one_by_one:
        importance.zero_grad()
    with evaluating(network), torch.enable_grad():
        targets = torch.split(calibration.targets, size)
        for batch, labels in zip(split(inputs, size), targets, strict=True):
            scores = call_network(network, batch)
            if one_by_one:
                network.zero_grad()
            if not isinstance(scores, Tensor) or scores.dim() != 2:
                raise CompressionError(f"{name} needs class scores (N, classes) as the network's outputs.")
            loss = nn.functional.cross_entropy(scores, labels.to(scores.device), reduction="sum")
            torch.autograd.backward(loss / (1 if one_by_one else batch_size(inputs)))
            if one_by_one:
                importance.accumulate_grad(network)  # the last gradients stay: they are read, too


def _importance(settings: TorchPruningSettings) -> Any:
    """The importance that the settings name."""
    kind = resolve(settings.importance)
    if not isinstance(kind, type):
        raise ConfigError(f"TorchPruning.importance: must be a class. Got {settings.importance}, {kind_of(kind)}.")
    if any(kind.__name__.startswith(word) for word in OTHERS):
        raise ConfigError(
            f"TorchPruning.importance: {kind.__name__} needs a forward pass of its own, which only torch-pruning has. "
            f"Use another class, such as GroupTaylorImportance."
        )
    try:
        return kind(**settings.kwargs)
    except Exception as error:  # the user's arguments, or class
        raise ConfigError(
            f"TorchPruning: {kind.__name__} cannot be made with kwargs {dict(settings.kwargs)}: "
            f"{type(error).__name__}: {error}"
        ) from error
