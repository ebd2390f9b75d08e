"""The parameters that a method can compress, derived from its analysis, and the report about the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiment.layers.channels.group_data import ChannelGroup
from experiment.layers.plan import Plan, State
from experiment.layers.unreachable import Unreached, unreached

MOST_NAMES = 8
MOST_UNSAID = 0.05  # of all parameters: less is in the table of layers alone


@dataclass(frozen=True)
class Reach:
    """The parameters that a method may remove or round, and why it may not touch other modules."""

    parameters: frozenset[str]
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutOfReach:
    """What a method cannot compress.

    Attributes:
        modules: the modules with their sizes and reasons.
        total: parameters of the whole network.
        nothing: whether there is nothing else in the network, so that the method has no effect.
    """

    modules: tuple[Unreached, ...] = ()
    total: int = 0
    nothing: bool = False

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules)

    def text(self, what: str = "cannot be compressed") -> str:
        """One sentence, the largest modules first; empty if everything can be compressed."""
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
        """The warning for a method of this kind (`MethodEntry.kind`).

        Empty for `none`, which compresses nothing, and where it is about less than a twentieth of the parameters.
        """
        if kind == "none" or not (self.nothing or self.parameters > MOST_UNSAID * self.total):
            return ""
        return self.text("stay in float32" if kind == "quantization" else "cannot be compressed")

    def rest(self, keeps: Sequence[float | None]) -> str:
        """For keep ratios of all parameters, the shares of the compressible ones that are left."""
        others = self.total - self.parameters
        shares = [
            (k, (k * self.total - self.parameters) / others) for k in keeps if isinstance(k, int | float) and others
        ]
        said = ", ".join(f"keep {keep:g} leaves {max(0.0, share):.1%}" for keep, share in shares[:MOST_NAMES])
        return f" Of the rest, {said}." if said and self.modules else ""


EVERYTHING = OutOfReach()  # can be compressed


def out_of_reach(state: State, analysis: object) -> OutOfReach:
    """What the method that made an analysis cannot compress; nothing for analyses of unknown types."""
    reach = reach_of(analysis)
    if reach is None:
        return EVERYTHING
    known = reach.parameters & dict(state.network.named_parameters(remove_duplicate=False)).keys()
    found = unreached(state.network, state.example, known, reach.reasons)
    return OutOfReach(found, sum(p.numel() for p in state.network.parameters()), not known)


def reach_of(analysis: object) -> Reach | None:
    """The reach of the method that made an analysis, by the attributes of the analysis; None if it has none of these.

    `parts` are ranked parameters, `start` holds all that can be, `base` and `ranked` another analysis, `filters`
    channel groups, `order` and `scores` blocks, `analyses()` those of schemes.
    """
    if isinstance(analysis, Plan):
        names = [*analysis.details, *map(_weight, analysis.details)]  # of parameters, and of layers
        return Reach(frozenset(names)) if names else None
    held = vars(analysis) if hasattr(analysis, "__dict__") else {}
    found: Reach | None = None
    if "parts" in held:
        found = Reach(frozenset((*held["parts"], *held.get("ignored", ()))))
    elif "start" in held:
        found = Reach(frozenset(held["start"].weights))
    elif "base" in held or "ranked" in held:
        found = reach_of(held["base"] if "base" in held else held["ranked"])
    elif "filters" in held:
        found = _of_channels(held["filters"].groups)
    elif {"order", "scores", "state"} <= held.keys():
        found = Reach(frozenset(name for name, _ in held["state"].network.named_parameters()))
    elif hasattr(analysis, "analyses"):
        found = _of_schemes(analysis.analyses())
    return found


def _of_channels(groups: Sequence[ChannelGroup]) -> Reach:
    members = [member.module for group in groups if group.exempt is None for member in group.members]
    free = {*members, *map(_weight, members)}  # bare parameters are members too
    reasons = {name: group.exempt for group in groups if group.exempt is not None for name in group.producers}
    return Reach(frozenset(free), reasons)


def _of_schemes(analyses: Sequence[object]) -> Reach | None:
    known = [reach for analysis in analyses if (reach := reach_of(analysis)) is not None]
    if not known:
        return None
    reasons = {name: reason for reach in known for name, reason in reach.reasons.items()}
    return Reach(frozenset().union(*(reach.parameters for reach in known)), reasons)


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"
