"""Which methods can follow each other in a composition, without torch: said before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiment.registry import MethodEntry

if TYPE_CHECKING:
    from experiment.config.value_tree import KeyPath

Fault = tuple["KeyPath", str]
QUANTIZATION = "quantization"  # the kind of methods that leave a plan as it is, but for the bits of its weights


@dataclass(frozen=True)
class Stage:
    """One scheme: its registered label or import path, its entry, its settings and whether these decide its size."""

    name: str
    entry: MethodEntry
    settings: object
    fixed_size: bool


def takers_of(stages: tuple[Stage, ...]) -> list[int]:
    """The indices of the schemes that take the keep ratio."""
    return [i for i, stage in enumerate(stages) if not stage.fixed_size]


def order_faults(stages: tuple[Stage, ...]) -> Iterator[Fault]:
    """Why schemes cannot be applied in this order, each fault with its path in the settings of the composition."""
    takers = takers_of(stages)
    for i in takers[1:]:
        first = stages[takers[0]].entry.label
        text = f"{stages[i].entry.label} takes the keep ratio, and so does {first}, which leaves it nothing to do."
        yield ("schemes", i), f"{text} Give all but one a size of their own, such as Prune with a density."
    for i, stage in enumerate(stages):
        before, after = stages[:i], [s for s in stages[i + 1 :] if s.entry.kind != QUANTIZATION]
        if reason := _why_not(stage, before, after, last=i == len(stages) - 1):
            yield ("schemes", i), reason


def _why_not(stage: Stage, before: tuple[Stage, ...], after: list[Stage], *, last: bool) -> str | None:
    """Why a scheme cannot stand where it stands; `after`: those behind it that do not quantize."""
    label, kind = stage.entry.label, stage.entry.kind
    masking = [s.entry.label for s in before if s.entry.kind == "weight"]
    if kind == QUANTIZATION and not last:
        return f"{label} must be the last scheme: what comes after it computes with other weights than it rounded."
    if kind == "lowrank" and after:
        return (
            f"{label} cannot be followed by {after[0].entry.label}: of the factors that a layer became, a plan says "
            f"nothing but their rank. Put {label} after it."
        )
    if kind == "lowrank" and masking:
        return (
            f"{label} cannot follow {masking[0]}: the factors are dense, so that nothing of the masks would be left. "
            "Remove filters or neurons before it, or leave one of the two out."
        )
    if stage.entry.target == "experiment.methods.filters.blocks:Blocks" and after:
        return f"{label} cannot be followed by {after[0].entry.label}, which cannot leave blocks out. Put it last."
    return None
