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
    random = generator("trial")

    def fill(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            tensor.copy_(torch.rand(tensor.shape, generator=random) * (high - low) + low)

    with torch.no_grad():
        for module in probe.modules():
            if not is_sliceable(module) or isinstance(module, nn.PReLU):
                continue
            tensors: dict[str, Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = (3 / module.weight[0].numel()) ** 0.5  # a variance of 1 / fan-in keeps the scale
                fill(module.weight, -bound, bound)
            else:
                fill(tensors.get("weight"), 0.5, 1.5)
            fill(tensors.get("bias"), 0.5, 1.0)  # positive: ReLUs let it through
            fill(tensors.get("running_mean"), -0.2, 0.2)
            fill(tensors.get("running_var"), 0.5, 1.5)
    return probe


def tried(probe: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The same groups, those exempted for which cutting half of their channels is not what zeroing them is.

    All groups are tried at once, one by one only if that fails.

    Args:
        probe: what `randomised` made of the network.
    """
    halves = [_half(group) for group in groups]
    if _agree(probe, example, kept_of(groups, halves)):
        return list(groups)
    whole = [range(group.size) for group in groups]
    checked = []
    for i, group in enumerate(groups):
        alone = [*whole[:i], halves[i], *whole[i + 1 :]]
        fine = group.exempt is not None or _agree(probe, example, kept_of(groups, alone))
        checked.append(group if fine else replace(group, exempt="cutting them is not what zeroing them is"))
    if checked != list(groups):
        return tried(probe, example, checked)
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


def _half(group: ChannelGroup) -> Sequence[int]:
    if group.exempt is not None:
        return range(group.size)
    shuffled: list[int] = torch.randperm(group.size, generator=generator("trial", group.name)).tolist()
    return shuffled[: (group.size + 1) // 2]


def _agree(probe: nn.Module, example: Tensor, kept: Mapping[str, Kept]) -> bool:
    """Whether the sliced network runs and computes what the masked one does."""
    masked, sliced = copy.deepcopy(probe), copy.deepcopy(probe)
    with torch.no_grad():
        mask_channels(masked, kept)
        expected = flat(masked(example))
        try:
            slice_channels(sliced, kept)
            outputs = flat(sliced(example))
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
