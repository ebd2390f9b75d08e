"""Trying out whether groups of channels can be cut: the sliced network must compute what the masked one does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from experiment.layers.channels import is_sliceable, mask_channels, slice_channels
from experiment.layers.groups import ChannelGroup, kept_of
from experiment.layers.plan import Kept
from experiment.streams import generator

# of the largest output: far above what another order of summation does in float32, far below what a wrong channel does
TOLERANCE = 1e-3


def randomised(network: nn.Module) -> nn.Module:
    """A copy in eval mode in which every channel is alive and no two are alike, so that no mistake is hidden."""
    probe = copy.deepcopy(network).eval().requires_grad_(True)
    with torch.no_grad():
        for name, module in probe.named_modules():
            if not is_sliceable(module) or isinstance(module, nn.PReLU):
                continue
            ranges = {"weight": (0.5, 1.5), "bias": (0.5, 1.0), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = (3 / module.weight[0].numel()) ** 0.5  # a variance of 1 / fan-in keeps the scale
                ranges["weight"] = (-bound, bound)  # and biases above zero get through ReLUs
            tensors: dict[str, Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
            for key in ranges.keys() & tensors.keys():
                tensors[key].uniform_(*ranges[key], generator=generator("trial", name, key, device=tensors[key].device))
    return probe


def tried(probe: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The same groups, those exempted for which cutting some of their channels is not what zeroing them is.

    Groups are cut all at once, one by one only if that fails.

    Args:
        probe: what `randomised` made of the network.
    """
    if all(_agree(probe, example, _cut(groups, counts)) for counts in _designs(groups)):
        return list(groups)
    whole = [group.size for group in groups]
    failing = set()
    for i, group in enumerate(groups):
        counts = [*whole[:i], (group.size + 1) // 2, *whole[i + 1 :]]
        if group.exempt is None and not _agree(probe, example, _cut(groups, counts)):
            failing.add(i)
    if failing:
        alone = "cutting them is not what zeroing them is"
        return tried(probe, example, [replace(g, exempt=alone) if i in failing else g for i, g in enumerate(groups)])
    together = "cutting several groups at once is not what zeroing them is"
    return [replace(group, exempt=group.exempt or together) for group in groups]


def flat(output: object) -> list[Tensor]:
    """The tensors in a network's output: one, or a dictionary, list or tuple of them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in flat(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in flat(value)]
    return []


def _designs(groups: Sequence[ChannelGroup]) -> list[list[int]]:
    """How many channels every group keeps in each trial: half, and then numbers that tell groups of one size apart.

    A layer that halves its input, say, goes wrong only where two groups of one size keep different numbers. The numbers
    of the j-th group of size n are the digits of j to the base n - 1, one a trial.
    """
    free = [group.exempt is None and group.size > 1 for group in groups]
    alike: dict[int, int] = {}
    numbers = [0] * len(groups)
    for i, group in enumerate(groups):
        if free[i]:
            numbers[i] = alike.get(group.size, 0)
            alike[group.size] = numbers[i] + 1
    designs = [[(group.size + 1) // 2 if may else group.size for group, may in zip(groups, free, strict=True)]]
    while any(numbers) or len(designs) == 1:
        counts = [group.size for group in groups]
        for i, group in enumerate(groups):
            if free[i]:
                base = max(group.size - 1, 2)
                numbers[i], digit = divmod(numbers[i], base)
                counts[i] = 1 + (digit + base // 2) % base  # the first of a size keeps about half
        designs.append(counts)
    return designs


def _cut(groups: Sequence[ChannelGroup], counts: Sequence[int]) -> dict[str, Kept]:
    """What stays when every group keeps so many channels, drawn at random."""
    chosen: list[list[int]] = []
    for i, (group, count) in enumerate(zip(groups, counts, strict=True)):
        chosen.append(torch.randperm(group.size, generator=generator("trial", i))[:count].tolist())
    return kept_of(groups, chosen)


def _agree(probe: nn.Module, example: Tensor, kept: Mapping[str, Kept]) -> bool:
    """Whether the sliced network runs and computes what the masked one does."""
    network = copy.deepcopy(probe)
    with torch.no_grad():
        mask_channels(network, kept)
        expected = flat(network(example))
        try:
            slice_channels(network, kept)
            outputs = flat(network(example))
        except Exception:  # shapes that do not meet raise whatever the network's own code raises: the answer is no
            return False
    return len(outputs) == len(expected) and all(map(_close, outputs, expected))


def _close(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(output, expected))
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(output, expected, rtol=0, atol=TOLERANCE * scale)
