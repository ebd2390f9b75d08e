"""What a method can touch of a network, read from its analysis, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from experiment.layers.channels.groups import ChannelGroup
from experiment.layers.plan import Plan, State
from experiment.layers.unreachable import Unreached, unreached

MOST_NAMES = 8


@dataclass(frozen=True)
class Reach:
    """Parameters that a method may take away or round, and for other modules why it may not."""

    parameters: frozenset[str]
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutOfReach:
    """What a method leaves alone, because it must.

    Attributes:
        modules: with their sizes and reasons.
        total: parameters of the whole network.
        nothing: whether that is everything which could be compressed.
    """

    modules: tuple[Unreached, ...] = ()
    total: int = 0
    nothing: bool = False

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules)

    def text(self, what: str = "cannot be compressed") -> str:
        """One sentence, the largest first; empty where everything can be reached."""
        if not self.modules:
            return "there is nothing to compress." if self.nothing else ""
        by_size = sorted(self.modules, key=lambda module: -module.parameters)
        named = ", ".join(str(module) for module in by_size[:MOST_NAMES])
        more = len(self.modules) - MOST_NAMES
        named += f" and {more} more" if more > 0 else ""
        share = (
            f"{self.parameters:,} of {self.total:,} parameters ({self.parameters / self.total:.0%}) {what}: {named}."
        )
        return f"there is nothing to compress: {share}" if self.nothing else share

    def told(self, kind: str) -> str:
        """The sentence for a method of this kind (`MethodEntry.kind`); empty for controls, which compress nothing."""
        if kind == "none":
            return ""
        return self.text("stay in float32" if kind == "quantization" else "cannot be compressed")

    def rest(self, keeps: Sequence[float | None]) -> str:
        """What keep ratios of all parameters are of those that can be reached."""
        others = self.total - self.parameters
        shares = [
            (k, (k * self.total - self.parameters) / others) for k in keeps if isinstance(k, int | float) and others
        ]
        said = ", ".join(f"keep {keep:g} leaves {max(0.0, share):.1%}" for keep, share in shares[:MOST_NAMES])
        return f" Of the rest, {said}." if said and self.modules else ""


EVERYTHING = OutOfReach()  # is within reach


def out_of_reach(state: State, analysis: object) -> OutOfReach:
    """What the method that made an analysis leaves alone; nothing for analyses of unknown kinds."""
    reach = reach_of(analysis)
    if reach is None:
        return EVERYTHING
    known = reach.parameters & dict(state.network.named_parameters(remove_duplicate=False)).keys()
    found = unreached(state.network, state.example, known, reach.reasons)
    return OutOfReach(found, sum(p.numel() for p in state.network.parameters()), not known)


def reach_of(analysis: object) -> Reach | None:
    """The reach of the method that made an analysis, by what the analysis holds; None if it holds nothing known."""
    found: Reach | None = None
    if isinstance(analysis, _OfLayers):
        found = Reach(frozenset(_weight(name) for name in analysis.start.layers))
    elif isinstance(analysis, _OfRanks):
        found = reach_of(analysis.base)
    elif isinstance(analysis, _OfRankedChannels):
        found = reach_of(analysis.ranked)
    elif isinstance(analysis, _OfChannels):
        found = _of_channels(analysis.filters.groups)
    elif isinstance(analysis, _OfBlocks):
        found = Reach(frozenset(name for name, _ in analysis.state.network.named_parameters()))
    elif isinstance(analysis, _OfSchemes):
        found = _of_schemes(analysis)
    elif isinstance(analysis, Plan) and analysis.details:
        found = Reach(frozenset(_weight(name) for name in analysis.details))
    return found


def _of_channels(groups: Sequence[ChannelGroup]) -> Reach:
    free = {_weight(member.module) for group in groups if group.exempt is None for member in group.members}
    reasons = {name: group.exempt for group in groups if group.exempt is not None for name in group.producers}
    return Reach(frozenset(free), reasons)


def _of_schemes(chain: Any) -> Reach | None:
    analyses = [applied.analysis for applied in (*chain.done, *(a for latest in chain.latest for a in latest))]
    analyses += [chain.waiting[1]] if chain.waiting is not None else []
    known = [reach for analysis in analyses if (reach := reach_of(analysis)) is not None]
    if not known:
        return None
    reasons = {name: reason for reach in known for name, reason in reach.reasons.items()}
    return Reach(frozenset().union(*(reach.parameters for reach in known)), reasons)


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


@runtime_checkable
class _OfLayers(Protocol):
    start: Any


@runtime_checkable
class _OfRanks(Protocol):
    base: Any


@runtime_checkable
class _OfRankedChannels(Protocol):
    ranked: Any
    rings: Any


@runtime_checkable
class _OfChannels(Protocol):
    filters: Any


@runtime_checkable
class _OfBlocks(Protocol):
    order: Collection[str]
    scores: Mapping[str, float]
    state: State


@runtime_checkable
class _OfSchemes(Protocol):
    done: Any
    waiting: Any
    latest: Any
