"""Finds which channels of a network can only be removed together, by following them, and checks the result.

Both use a copy with random weights, so that the result depends on the structure alone. Channels are followed in eval
and in training mode, and with several inputs if these take different paths through the network.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from experiment.inputs import (
    Inputs,
    batch_size,
    call_network,
    device_of,
    first,
    floating_dtype,
    moved,
    moved_like,
    split,
)
from experiment.layers.channels.channel_axes import CHANNEL_MAKERS, CONVOLUTIONS, SIDES, SWAPPED, channel_counts
from experiment.layers.channels.check_slicing import Run, alike, randomised, tried
from experiment.layers.channels.collect_labels import Follower
from experiment.layers.channels.find_numbers import with_numbers
from experiment.layers.channels.group_data import ChannelGroup, Member
from experiment.layers.channels.labels import Key, Labels, Places
from experiment.layers.channels.propagate_labels import GIVES_OUTPUT, follow
from experiment.layers.channels.uncoupled import UncoupledLabels
from experiment.layers.deterministic_forward import fixed_draws
from experiment.layers.forward_pass import evaluating, observing

_log = logging.getLogger("experiment")

SAMPLES = 16  # inputs that are tried for other paths through the network
NAMES = 3  # in one message
MESSAGES = 6  # warnings about layers that stay whole


def channel_groups(
    network: nn.Module, example: Inputs, samples: Sequence[Inputs] = (), *, coupled: bool = True
) -> list[ChannelGroup]:
    """The groups of channels that can only be removed together, in the order of the layers that produce them.

    Sums tie the layers that feed them, concatenations shift indices, Flatten multiplies them, depthwise layers follow
    their input. Groups that cannot be removed are included with the reason, which is logged as a warning except for
    those that compute the network's output.

    Args:
        network: not modified.
        example: an input batch that the network takes, on its device.
        samples: batches of further inputs, which may take other paths through the network.
        coupled: whether sums tie the layers that feed them; if not, each can lose channels alone.
    """
    probe = randomised(network)
    if floating_dtype(example) in (torch.float16, torch.bfloat16):  # their rounding would look like an error
        probe, example = probe.float(), moved(example, device_of(example), torch.float32)
    samples = [moved_like(first(batch, SAMPLES), example) for batch in samples if batch_size(batch)]
    with fixed_draws(), evaluating(probe):
        call_network(probe, example)  # a network that does not run fails here, with its own message
    example = _one(probe, example)
    modules, labels = dict(probe.named_modules()), Labels() if coupled else UncoupledLabels()
    follower = Follower(copy.deepcopy(probe), labels)
    runs = _followed(follower, probe, example, samples)
    for name, module in modules.items():
        _tie_groups(follower.labels, name, module)
    groups, lost = _collected(follower, modules)
    groups = with_numbers(probe, runs, _out_of_unseen(groups, follower, modules))
    groups = tried(probe, runs, groups, lost)
    _tell(groups)
    return groups


def _one(probe: nn.Module, example: Inputs) -> Inputs:
    """The first input alone if the network takes it, to save time."""
    try:
        with fixed_draws(), evaluating(probe):
            call_network(probe, first(example))
    except Exception:  # whatever the network's own code raises for a batch of another size
        return example
    return first(example)


def _followed(follower: Follower, probe: nn.Module, example: Inputs, samples: Sequence[Inputs]) -> list[Run]:
    """Follow the channels in eval and, if it differs, training mode, with several inputs if they call different layers.

    Returns: the runs.
    """
    runs = [Run(example)]
    follow(follower, runs[0])
    if samples and any(name not in follower.called for name, _ in _holders(probe)):
        seen = {_called(probe, runs[0])}
        for inputs in (*samples, *(one for batch in samples for one in split(batch, 1))):
            called = _called(probe, Run(inputs))
            if called not in seen:
                seen.add(called)
                runs.append(Run(inputs))
                follow(follower, runs[-1])
    training = [replace(run, training=True) for run in runs]
    try:
        training = [run for run, plain in zip(training, runs, strict=True) if not alike(probe, [plain, run])]
        for run in training:
            follow(follower, run)
    except Exception as error:  # whatever the network's own code raises, such as missing targets
        _log.warning(
            "The network does not run in training mode on the example (%s), so its channels are followed in eval mode "
            "only.", type(error).__name__,
        )  # fmt: skip
        return runs
    return runs + training


def _holders(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that own parameters."""
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _called(probe: nn.Module, run: Run) -> frozenset[str]:
    """Which modules with parameters a run calls."""
    called: set[str] = set()
    network = copy.deepcopy(probe)  # running statistics and the like may change
    with observing(dict(_holders(network)), before=lambda call: called.add(call.name)), torch.no_grad():
        run.of(network)
    return frozenset(called)


def _tie_groups(labels: Labels, name: str, module: nn.Module) -> None:
    """Tie the channels of each group of a grouped layer, on both sides: it loses whole groups only."""
    keys: list[Key] = []
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        groups, keys = module.groups, [(name, "out"), (name, "in")]
    elif isinstance(module, nn.GroupNorm):
        groups, keys = module.num_groups, [(name, "out")]
    if not keys:
        return
    sides = [labels.at(key, size).reshape(groups, -1) for key, size in zip(keys, channel_counts(module), strict=False)]
    for here in np.concatenate(sides, axis=1):
        known = here[here >= 0].tolist()
        labels.tie_group(known)
        if len(known) < len(here):
            labels.flag(known, f"'{name}' is grouped and reads channels that cannot be removed")


def _collected(follower: Follower, modules: Mapping[str, nn.Module]) -> tuple[list[ChannelGroup], dict[str, str]]:
    """One group for all channels that occupy the same sides, and the operations where channels were lost."""
    order: dict[str, int] = {name: i for i, name in enumerate(modules)}
    order |= {name: order[name.rpartition(".")[0]] for name in follower.bare}
    alike: dict[tuple[tuple[tuple[Key, int], ...], str | None], list[Places]] = {}
    lost: dict[str, str] = {}
    for places, reason, operation in follower.labels.channels():
        keys = sorted(places, key=lambda key: (order[key[0]], SIDES.index(key[1])))
        if not any(_makes(key, modules, follower) for key in keys):
            continue  # only bare parameters
        alike.setdefault((tuple((key, len(places[key])) for key in keys), reason), []).append(places)
        if operation is not None:
            lost.update(dict.fromkeys((name for name, side in keys if side == "out"), operation))
    groups = []
    for (signature, reason), channels in alike.items():
        keys = [key for key, _ in signature]
        producers = tuple(key[0] for key in keys if _makes(key, modules, follower))
        first: Key = (producers[0], "out")
        channels.sort(key=lambda places: places[first])
        sides = [_member(key, channels, modules, follower) for key in keys]
        members, streams = ([s for s in sides if (s.side in ("out", "in")) == own] for own in (True, False))
        group = ChannelGroup(producers[0], len(channels), tuple(members), producers, reason, streams=tuple(streams))
        groups.append(((order[producers[0]], channels[0][first]), group))
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])], lost


def _makes(key: Key, modules: Mapping[str, nn.Module], follower: Follower) -> bool:
    makes = key[1] == "out" and isinstance(modules.get(key[0]), CHANNEL_MAKERS)
    return makes and key not in follower.labels.shared


def _member(key: Key, channels: Sequence[Places], modules: Mapping[str, nn.Module], follower: Follower) -> Member:
    name, side = key
    positions = tuple(tuple(places[key]) for places in channels)
    if name in follower.bare:
        return Member(name, side, follower.bare[name][1].numel(), positions, shared=key in follower.labels.shared)
    norms = follower.norms[name] if side == "in" and name in follower.norms else {None}
    norm = next(iter(norms)) if len(norms) == 1 else None
    size = channel_counts(modules[name])[side in ("in", "taken")]
    shared = side in ("made", "taken") or key in follower.labels.shared
    return Member(name, side, size, positions, norm, isinstance(modules[name], SWAPPED), shared)


def _out_of_unseen(
    groups: Sequence[ChannelGroup], follower: Follower, modules: Mapping[str, nn.Module]
) -> list[ChannelGroup]:
    """Exempt channels that a module may read which no pass has called: it would not be sliced with them."""
    seen = {p for name in follower.called for p in modules[name].parameters(recurse=False)}
    unseen = {
        name: [p for p in module.parameters(recurse=False) if p not in seen]
        for name, module in modules.items()
        if name not in follower.called
    }
    widths = {
        name: {size for p in own for size in (p.shape[1:2] if p.dim() > 1 else p.shape)} for name, own in unseen.items()
    }
    told = []
    for group in groups:
        here = {member.size for member in group.members}.union(
            *(follower.widths.get(name, set()) for name in group.producers)
        )
        name = next((name for name, reads in widths.items() if group.size > 1 and not here.isdisjoint(reads)), None)
        reason = None if name is None else f"'{name}' may read them, and no forward pass on the given inputs calls it"
        told.append(replace(group, exempt=group.exempt or reason))
    return told


def _tell(groups: Iterable[ChannelGroup]) -> None:
    """Warn about layers that stay whole, in a few messages."""
    layers: dict[str, list[str]] = {}
    for group in groups:
        if group.exempt not in (None, GIVES_OUTPUT) and group.size > 1:
            layers.setdefault(str(group.exempt), []).extend(group.producers)
    told = sorted(layers.items(), key=lambda item: -len(item[1]))
    for reason, names in told[:MESSAGES]:
        _log.warning("All channels of %s are kept: %s.", _listed(list(dict.fromkeys(names))), reason)
    if more := sum(len(names) for _, names in told[MESSAGES:]):
        _log.warning("All channels of %d more layers are kept, for similar reasons.", more)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more layers" if len(names) > NAMES else ""
    return ", ".join(f"'{name}'" for name in names[:NAMES]) + more
