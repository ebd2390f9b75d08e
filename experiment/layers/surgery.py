"""Which channels of a network can only go together: torch-pruning's dependency graph, turned once into plain data.

The graph is built on a copy with random weights, and what it says is tried out there. So no channel looks dead because
training killed it, and the answer depends on the structure alone.
Source: Fang et al. 2023, DepGraph: Towards Any Structural Pruning, https://arxiv.org/abs/2301.12900
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.channels import channel_counts, is_sliceable
from experiment.layers.grouped import GroupedLinear
from experiment.layers.groups import ChannelGroup, Member
from experiment.layers.inspect import evaluating
from experiment.layers.labels import Key, Labels, Places
from experiment.layers.trial import flat, randomised, tried

_log = logging.getLogger("experiment")

GIVES_OUTPUT = "they give the network's output"


def channel_groups(network: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """The groups of channels that can only be removed together, in the order of the layers that make them.

    Sums tie the layers that feed them, concatenations shift indices, Flatten multiplies them, depthwise layers follow.
    Groups whose channels cannot go are there too, with the reason; it is logged as a warning, but for those that give
    the network's output.

    Args:
        network: not modified.
        example: an input batch that the network takes, on its device.
    Raises: CompressionError: torch-pruning cannot trace the network, or it has grouped linear layers, through which it
        would follow channels for hours.
    """
    if grouped := [name for name, module in network.named_modules() if isinstance(module, GroupedLinear)]:
        raise CompressionError(
            f"channels cannot be removed from a network with grouped linear layers ({', '.join(grouped)}), which a "
            "low-rank method has made. Remove channels first, or decompose with one group a layer, as SVD does."
        )
    probe = randomised(network)
    if example.dtype in (torch.float16, torch.bfloat16):
        probe, example = probe.float(), example.float()  # their rounding would look like a wrong channel
    with evaluating(probe):
        probe(example)  # a network that does not run fails here, in its own words
    groups = tried(probe, example, _traced(probe, example))
    for group in groups:
        if group.exempt not in (None, GIVES_OUTPUT):
            _log.warning("The channels of %s all stay: %s.", ", ".join(group.producers), group.exempt)
    return groups


class _Traceable(nn.Module):
    """A network behind an input that the graph can see, and with outputs that are no layer's own."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        super().__init__()
        norms: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}
        visible = example.is_floating_point() and example.dim() in norms
        self.entry = norms[example.dim()](example.shape[1]).to(example) if visible else nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        return [output * 1 for output in flat(self.network(self.entry(x))) if output.grad_fn is not None]


def _traced(probe: nn.Module, example: Tensor) -> list[ChannelGroup]:
    traceable = _Traceable(probe, example).eval()
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is tried out
            graph.build_dependency(traceable, example, forward_fn=lambda model, x: model(x), verbose=False)
            labels = _labelled(graph, traceable)
    except Exception as error:
        raise CompressionError(
            f"torch-pruning cannot follow the channels of this {type(probe).__name__}: {type(error).__name__}: "
            f"{error}. Compress it with a method that removes no channels."
        ) from error
    return _collected(labels, dict(probe.named_modules()), graph.module2node)


def _labelled(graph: Any, traceable: _Traceable) -> Labels:
    """Walk the graph from every layer that makes channels, and note every place that each of them runs through."""
    labels, obstacles = Labels(), _Obstacles(traceable)
    for name, module in traceable.network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module not in graph.module2node:
            continue
        size = module.weight.shape[0]
        if (labels.at((name, "out"), size) >= 0).all():
            continue
        channels = labels.new(size)
        cut = graph.get_pruner_of_module(module).prune_out_channels
        for item in graph.get_pruning_group(module, cut, list(range(size))).items:
            target, here = item.dep.target.module, channels[np.asarray(item.root_idxs, np.int64)]
            reason = obstacles.of(target)
            if reason is not None:
                labels.flag(here, reason)
            for key, places in _sides(target, obstacles.names, graph, item.dep.handler):
                labels.place(key, places, item.idxs, here)
    for name, module in traceable.network.named_modules():
        _tie_groups(labels, name, module)
    return labels


class _Obstacles:
    """What no channel may run through."""

    def __init__(self, traceable: _Traceable) -> None:
        network = traceable.network
        self.names: dict[object, str] = {module: name for name, module in network.named_modules()}
        self._parameters = {id(parameter): name for name, parameter in network.named_parameters()}
        self._entry = traceable.entry
        holders: dict[int, list[nn.Module]] = {}
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                holders.setdefault(id(parameter), []).append(module)
        self._tied = {module for sharing in holders.values() if len(sharing) > 1 for module in sharing}

    def of(self, target: object) -> str | None:
        """Why channels that run through a module, parameter or operation cannot go; None if they can."""
        if target is self._entry:
            return "they meet the network's input"
        if isinstance(target, torch_pruning.ops._OutputOp):
            return GIVES_OUTPUT
        if isinstance(target, nn.Parameter):
            return f"they meet the bare parameter '{self._parameters[id(target)]}'"
        if not isinstance(target, nn.Module) or target not in self.names:
            return None  # an operation: whether it treats channels one by one is tried out
        name, kind = self.names[target], type(target).__name__
        if not is_sliceable(target):
            return f"no channel can be cut out of '{name}' ({kind})"
        if target in self._tied:
            return f"'{name}' shares its parameters with another layer"
        if isinstance(target, nn.Conv2d) and 1 < target.groups == target.out_channels < target.in_channels:
            return f"'{name}' reads several channels a filter"  # torch-pruning takes it for a depthwise convolution
        return None


def _sides(target: object, names: Mapping[object, str], graph: Any, cut: object) -> Iterator[tuple[Key, int]]:
    """The sides of a module that cutting a channel there with torch-pruning's function `cut` takes it from."""
    if not isinstance(target, nn.Module) or target not in names:
        return
    if isinstance(target, nn.Conv2d | nn.Linear):
        outputs, inputs = channel_counts(target)
        if graph.is_out_channel_pruning_fn(cut):
            yield (names[target], "out"), outputs
        if graph.is_in_channel_pruning_fn(cut):
            yield (names[target], "in"), inputs
    elif is_sliceable(target):
        outputs, _ = channel_counts(target)
        if outputs > 1 or not isinstance(target, nn.PReLU):  # a PReLU may have one slope for all channels
            yield (names[target], "out"), outputs


def _tie_groups(labels: Labels, name: str, module: nn.Module) -> None:
    """A grouped layer loses whole groups only: the channels of a group are one, those of both sides."""
    keys: list[Key] = []
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        groups, keys = module.groups, [(name, "out"), (name, "in")]
    elif isinstance(module, nn.GroupNorm):
        groups, keys = module.num_groups, [(name, "out")]
    if not keys:
        return
    sides = [labels.at(key, size).reshape(groups, -1) for key, size in zip(keys, channel_counts(module), strict=False)]
    for here in np.concatenate(sides, axis=1):
        known = here[here >= 0].tolist()
        labels.tie(known)
        if len(known) < len(here):
            labels.flag(known, f"'{name}' is grouped and reads channels that cannot go")


def _collected(labels: Labels, modules: Mapping[str, nn.Module], nodes: Mapping[nn.Module, Any]) -> list[ChannelGroup]:
    """Channels that run through the same sides become one group."""
    order = {name: i for i, name in enumerate(modules)}
    alike: dict[tuple[tuple[tuple[Key, int], ...], str | None], list[Places]] = {}
    for places, reason in labels.channels():
        keys = sorted(places, key=lambda key: (order[key[0]], key[1] == "in"))
        alike.setdefault((tuple((key, len(places[key])) for key in keys), reason), []).append(places)
    groups = []
    for (signature, reason), channels in alike.items():
        keys = [key for key, _ in signature]
        producers = tuple(n for n, side in keys if side == "out" and isinstance(modules[n], nn.Conv2d | nn.Linear))
        first: Key = (producers[0], "out")
        channels.sort(key=lambda places: places[first])
        members = tuple(_member(key, channels, modules, nodes) for key in keys)
        group = ChannelGroup(producers[0], len(channels), members, producers, reason)
        groups.append(((order[producers[0]], channels[0][first]), group))
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])]


def _member(
    key: Key, channels: Sequence[Places], modules: Mapping[str, nn.Module], nodes: Mapping[nn.Module, Any]
) -> Member:
    name, side = key
    norm = None
    if side == "in":
        readers = nodes[modules[name]].outputs
        if len(readers) == 1 and isinstance(readers[0].module, nn.BatchNorm1d | nn.BatchNorm2d):
            alone = len(readers[0].inputs) == 1
            norm = next((n for n, m in modules.items() if m is readers[0].module), None) if alone else None
    size = channel_counts(modules[name])[side == "in"]
    return Member(name, side, size, tuple(tuple(places[key]) for places in channels), norm)
