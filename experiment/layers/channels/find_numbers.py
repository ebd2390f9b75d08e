"""Finds which numbers of modules and configs follow which groups of channels.

A number's name and value tell what it may count. Where that is ambiguous (`embed_dim` may be the width of the network
or that of all heads), the likeliest choice is tried on one group of its kind, then others, until the sliced network
computes what the masked one does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from experiment.layers.channels.channel_axes import is_sliceable
from experiment.layers.channels.check_slicing import Run, cut, fault
from experiment.layers.channels.group_data import ChannelGroup, Member
from experiment.layers.channels.module_numbers import CONFIG, HEADS, INNER, NEURONS, Number, config_numbers, own_numbers

TRIALS = 12  # for one kind of group


@dataclass(frozen=True)
class _Candidate:
    """A number that may follow a group: `likely` by its name. Its kind is the same in modules of the same class."""

    number: Number
    kind: tuple[str, str]
    likely: bool


def with_numbers(probe: nn.Module, runs: Sequence[Run], groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups with the numbers that follow them.

    Args:
        probe: the randomised network; not modified.
    """
    candidates = _candidates(probe, groups)
    numbered = [replace(group, numbers=_chosen(c, None)) for group, c in zip(groups, candidates, strict=True)]
    found: dict[object, frozenset[tuple[str, str]] | None] = {}
    for g, (group, options) in enumerate(zip(groups, candidates, strict=True)):
        if not options:
            continue
        kind = (frozenset((c.kind, c.number.value, c.likely) for c in options), group.size, group.has_heads)
        if kind not in found:
            found[kind] = _search(probe, runs, numbered, g, options)
        numbered[g] = replace(group, numbers=_chosen(options, found[kind]))
    return numbered


def _chosen(options: Sequence[_Candidate], kinds: frozenset[tuple[str, str]] | None) -> tuple[Number, ...]:
    """The numbers of these kinds, or the likely ones."""
    return tuple(c.number for c in options if (c.likely if kinds is None else c.kind in kinds))


def _search(
    probe: nn.Module, runs: Sequence[Run], groups: Sequence[ChannelGroup], g: int, options: Sequence[_Candidate]
) -> frozenset[tuple[str, str]] | None:
    """The kinds of numbers with which half of the group can be removed; None, the likely ones, if there are none."""
    counts = [group.size for group in groups]
    counts[g] = (counts[g] + 1) // 2
    for _, kinds in zip(range(TRIALS), _choices(options), strict=False):
        trial = [*groups]
        trial[g] = replace(groups[g], numbers=_chosen(options, kinds))
        if fault(probe, runs, cut(trial, counts)) is None:
            return kinds
    return None


def _choices(options: Sequence[_Candidate]) -> Iterator[frozenset[tuple[str, str]]]:
    """Sets of kinds, the likeliest first."""
    likely = frozenset(c.kind for c in options if c.likely)
    others = frozenset(c.kind for c in options) - likely
    yield likely
    if others:
        yield likely | others
    for kind in sorted(others):
        yield likely | {kind}
    for kind in sorted(likely):
        yield likely - {kind}
    yield frozenset()


def _candidates(probe: nn.Module, groups: Sequence[ChannelGroup]) -> list[list[_Candidate]]:
    """For every group the numbers that may follow it."""
    found: list[list[_Candidate]] = [[] for _ in groups]
    configs: set[int] = set()
    for name, module in probe.named_modules():
        numbers = {} if is_sliceable(module) else own_numbers(module)
        if id(config := vars(module).get("config")) not in configs:
            configs.add(id(config))
            numbers |= config_numbers(module)
        prefix = f"{name}." if name else ""
        for attribute, value in numbers.items():
            plain = attribute.removeprefix(CONFIG)
            sides: dict[int, Member] = {}
            for g, group in enumerate(groups):
                side = _side(group, plain, value, prefix) if group.exempt is None and group.size > 1 else None
                if side is not None:
                    sides[g] = side
            likely = _likely(plain, groups, list(sides))
            for g, side in sides.items():
                number = Number(name, attribute, value, side.module, side.side)
                found[g].append(_Candidate(number, (type(module).__qualname__, attribute), g in likely))
    return found


def _side(group: ChannelGroup, name: str, value: int, prefix: str) -> Member | None:
    """The member inside a module whose channels a number of this name and value may count."""
    for member in group.members:
        places = len(member.positions[0])
        if not member.module.startswith(prefix):
            continue
        if name in HEADS:
            whole = member.side == "out" and member.size == group.size * places
            if group.has_heads and whole and value % group.size == 0:
                return member
        elif member.size == value:
            return member
    return None


def _likely(name: str, groups: Sequence[ChannelGroup], among: Sequence[int]) -> list[int]:
    """The groups that a number of this name most likely counts: heads, neurons, or the most used ones: the width."""
    if name in HEADS | INNER:
        return [g for g in among if groups[g].has_heads]
    plain = [g for g in among if not groups[g].has_heads]
    most = max((len(groups[g].members) for g in plain), default=0)
    width = [g for g in plain if 2 * len(groups[g].members) > most]
    neurons = [g for g in plain if g not in width]
    return (neurons or plain) if name in NEURONS else width
