"""Checks which groups of channels can be removed: the sliced network must compute what the masked one computes."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from experiment.inputs import Inputs, call_network, output_tensors
from experiment.layers.channels import channel_axes
from experiment.layers.channels.group_data import ChannelGroup, kept_of
from experiment.layers.channels.slicing import mask_channels, slice_channels
from experiment.layers.deterministic_forward import fixed_draws
from experiment.layers.plan import Kept
from experiment.random_streams import generator

# of the largest output: far above rounding in float32, far below the effect of a wrong channel
TOLERANCE = 1e-3
# parameters that the search for failing groups may copy, over all trials: minutes on one core
MOST_WORK = 4e10
LEAST_OF_A_TRIAL = 5_000_000  # parameters: what a trial of a small network costs besides


def randomised(network: nn.Module) -> nn.Module:
    """A copy in eval mode with random weights: every channel is live and no two are alike, so no error is hidden."""
    probe = copy.deepcopy(network).eval()
    for parameter in probe.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.no_grad():
        for name, module in probe.named_modules():
            if not channel_axes.is_sliceable(module) or isinstance(module, nn.PReLU):
                continue
            ranges = {"bias": (0.5, 1.0), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
            if isinstance(module, channel_axes.CHANNEL_MAKERS):  # a variance of 1 / fan-in keeps the scale
                fan_in = (
                    1 if isinstance(module, nn.Embedding) else channel_axes.filters_of(module, module.weight)[0].numel()
                )
                ranges["weight"] = (-((3 / fan_in) ** 0.5), (3 / fan_in) ** 0.5)  # positive biases pass through ReLUs
            for key, tensor in channel_axes.tensors_of(module).items():
                random = generator("trial", name, key, device=tensor.device)
                tensor.uniform_(*ranges.get(key, (0.5, 1.5)), generator=random)
        for name, parameter in channel_axes.bare_parameters(probe).items():
            parameter.uniform_(0.5, 1.5, generator=generator("trial", name, device=parameter.device))
    return probe


@dataclass(frozen=True)
class Run:
    """The inputs and the mode of a forward pass."""

    inputs: Inputs
    training: bool = False

    def of(self, network: nn.Module, watching: AbstractContextManager[object] | None = None) -> object:
        """The network's output, without randomness. BatchNorms use their running statistics in both modes.

        Args:
            watching: a context for the forward pass.
        """
        network.train(self.training)
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        with fixed_draws(), watching or nullcontext():
            return call_network(network, self.inputs)


def results(output: object) -> list[Tensor]:
    """The tensors of an output that must not change: its logits, if it names some, else all of them.

    What else a mapping with logits holds, such as the encoder's last hidden state, may become narrower.
    """
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return [output["logits"]]
    return output_tensors(output)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations that torch executes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[object] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def alike(probe: nn.Module, runs: Sequence[Run]) -> bool:
    """Whether all runs are the same operations with the same outputs, bit by bit, with gradients and without."""
    network = copy.deepcopy(probe)  # buffers may change
    for grad in (True, False):
        first: tuple[list[object], list[Tensor]] | None = None
        for run in runs:
            operations = _Operations()
            with torch.set_grad_enabled(grad):
                outputs = results(run.of(network, operations))
            seen, expected = first = first or (operations.seen, outputs)
            if operations.seen != seen or len(outputs) != len(expected) or not all(map(torch.equal, outputs, expected)):
                return False
    return True


class Search:
    """The work that is left for a search of failing groups. It is counted, not timed, so that results are the same."""

    def __init__(self, probe: nn.Module) -> None:
        each = LEAST_OF_A_TRIAL + sum(parameter.numel() for parameter in probe.parameters())
        self.trials = max(1, int(MOST_WORK / each))
        self.reason = f"the search for layers that can lose channels ended after {self.trials:,} networks were tried"

    def goes_on(self) -> bool:
        """Whether another trial may be made, which is then counted."""
        self.trials -= 1
        return self.trials >= 0


def tried(
    probe: nn.Module,
    runs: Sequence[Run],
    groups: Sequence[ChannelGroup],
    lost: Mapping[str, str],
    search: Search | None = None,
) -> list[ChannelGroup]:
    """The same groups, exempting those for which removing channels differs from setting them to zero.

    All groups are tried at once; if that fails, halves of them, down to the single ones that fail. The work of this
    search is bounded; groups that it did not reach are exempt.

    Args:
        probe: the randomised network.
        lost: layer -> the operation through which its channels could not be followed, for the reason.
    """
    search = search or Search(probe)
    for counts in _designs(groups):
        if fault(probe, runs, cut(groups, counts)) is None:
            continue
        if _is_random(probe, runs):
            random = "the forward pass is random, so no two passes can be compared"
            return [replace(group, exempt=group.exempt or random) for group in groups]
        free = [i for i, group in enumerate(groups) if group.exempt is None]
        failing = _failing(probe, runs, groups, counts, [], free, search)
        for i, why in failing.items():
            failing[i] = f"{why} (see '{lost[groups[i].name]}')" if groups[i].name in lost else why
        united = _united(probe, runs, groups, list(failing))
        if len(united) == len(groups):
            united = [replace(g, exempt=failing.get(i, g.exempt)) for i, g in enumerate(groups)]
        return tried(probe, runs, united, lost, search)
    return list(groups)


def _united(
    probe: nn.Module, runs: Sequence[Run], groups: Sequence[ChannelGroup], failing: Sequence[int]
) -> list[ChannelGroup]:
    """The same groups, uniting those of heads that fail alone and can lose the same heads.

    The number of heads ties them where layers exchange something that depends on it alone, as T5's cross-attention.
    """
    alike: dict[int, list[int]] = {}
    for i in failing:
        if groups[i].has_heads:
            alike.setdefault(groups[i].size, []).append(i)
    united = list(groups)
    for several in alike.values():
        first, *others = (united[i] for i in several)
        one = replace(
            first,
            members=sum((group.members for group in others), first.members),
            producers=sum((group.producers for group in others), first.producers),
            numbers=sum((group.numbers for group in others), first.numbers),
            streams=sum((group.streams for group in others), first.streams),
        )
        trial = [one if i == several[0] else group for i, group in enumerate(united) if i not in several[1:]]
        counts = [(group.size + 1) // 2 if group is one else group.size for group in trial]
        if others and fault(probe, runs, cut(trial, counts)) is None:
            return trial  # further ones are found when it is tried
    return united


def _failing(
    probe: nn.Module,
    runs: Sequence[Run],
    groups: Sequence[ChannelGroup],
    counts: Sequence[int],
    passed: Sequence[int],
    among: Sequence[int],
    search: Search,
) -> dict[int, str]:
    """The groups among these that cannot be reduced to their counts together with `passed`, with the reason."""
    if not search.goes_on():
        return dict.fromkeys(among, search.reason)
    fewer = {*passed, *among}
    why = fault(probe, runs, cut(groups, [counts[i] if i in fewer else g.size for i, g in enumerate(groups)]))
    if why is None:
        return {}
    if len(among) == 1:
        return {among[0]: why}
    first, second = among[: len(among) // 2], among[len(among) // 2 :]
    failing = _failing(probe, runs, groups, counts, passed, first, search)
    passed = [*passed, *(i for i in first if i not in failing)]
    return failing | _failing(probe, runs, groups, counts, passed, second, search)


def _designs(groups: Sequence[ChannelGroup]) -> list[list[int]]:
    """How many channels every group keeps in each trial: half, then numbers that differ among groups of one size.

    Some errors, such as those of a layer that halves its input, show only when two groups of one size keep different
    numbers. Those of the j-th group of size n are the digits of j to the base n - 1, one per trial.
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
                counts[i] = 1 + (digit + base // 2) % base  # the first of each size keeps about half
        designs.append(counts)
    return designs


def cut(groups: Sequence[ChannelGroup], counts: Sequence[int]) -> dict[str, Kept]:
    """What stays when every group keeps this number of random channels."""
    chosen: list[list[int]] = []
    for i, (group, count) in enumerate(zip(groups, counts, strict=True)):
        chosen.append(torch.randperm(group.size, generator=generator("trial", i))[:count].tolist())
    return kept_of(groups, chosen)


def fault(probe: nn.Module, runs: Sequence[Run], kept: Mapping[str, Kept]) -> str | None:
    """Why the sliced network differs from the masked one; None if it computes the same in all runs."""
    sliced = copy.deepcopy(probe)
    slice_channels(sliced, kept)
    with torch.no_grad():
        outputs = []
        for run in runs:
            try:
                outputs.append(results(run.of(sliced)))
            except Exception:  # whatever the network's own code raises for mismatched shapes
                return "the network does not run when some of them are removed"
        masked = copy.deepcopy(probe)
        mask_channels(masked, kept)
        for run, found in zip(runs, outputs, strict=True):
            if not _same(found, results(run.of(masked))):
                return "removing some of them is not the same as setting them to zero"
    return None


def _is_random(probe: nn.Module, runs: Sequence[Run]) -> bool:
    """Whether equal networks give different outputs, from random numbers that no seed controls."""
    with torch.no_grad():
        return any(not _same(*(results(run.of(copy.deepcopy(probe))) for _ in range(2))) for run in runs)


def _same(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether two outputs are equal up to rounding."""
    return len(outputs) == len(expected) and all(map(_close, outputs, expected))


def _close(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(output, expected))
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(output, expected, rtol=0, atol=TOLERANCE * scale)
