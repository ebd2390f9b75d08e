"""Which methods can follow each other in a composition, without torch: said before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiment.errors import ConfigError
from experiment.methods.find import find_method
from experiment.methods.settings import ComposeSettings, is_fixed_size, make_settings, setting_faults
from experiment.registry import MethodEntry, is_import_path

if TYPE_CHECKING:
    from experiment.config.tree import KeyPath

Fault = tuple["KeyPath", str]
QUANTIZATION = "quantization"  # the kind of methods that leave a plan as it is, but for the bits of its weights


@dataclass(frozen=True)
class Stage:
    """One scheme: its registered label or import path, its entry and its settings."""

    name: str
    entry: MethodEntry
    settings: object


def stages_of(settings: ComposeSettings) -> tuple[Stage, ...]:
    """The schemes looked up.

    Raises: ConfigError: a name is not known, or settings are wrong.
    """
    stages = []
    for scheme in settings.schemes:
        entry = find_method(scheme.name)
        if isinstance(entry, str):
            raise ConfigError(entry)
        name = scheme.name if is_import_path(scheme.name) else entry.label
        stages.append(Stage(name, entry, make_settings(entry, scheme.settings)))
    return tuple(stages)


def budgeted(settings: ComposeSettings) -> list[int]:
    """The indices of the schemes that take the keep ratio."""
    return [i for i, stage in enumerate(stages_of(settings)) if not is_fixed_size(stage.settings)]


def chain_faults(settings: ComposeSettings) -> Iterator[Fault]:
    """What is wrong with every scheme alone and, where nothing is, with their order."""
    if not settings.schemes:
        yield ("schemes",), "must not be empty: the methods to apply, one after the other."
    alone = list(_own_faults(settings))
    yield from alone
    if not alone:
        yield from _order_faults(stages_of(settings))


def _own_faults(settings: ComposeSettings) -> Iterator[Fault]:
    for i, scheme in enumerate(settings.schemes):
        path: KeyPath = ("schemes", i)
        try:
            entry = find_method(scheme.name)
            if isinstance(entry, str):
                yield (*path, "name"), entry
                continue
            if entry.settings is ComposeSettings:
                yield (*path, "name"), "a Compose within a Compose. Write its schemes here, one after the other."
                continue
            for key, text in setting_faults(entry, scheme.settings):
                yield (*path, "settings", *key), text
        except ConfigError as error:
            for problem in error.problems:
                yield (*path, "name"), problem
            continue
        if entry.kind == "none":
            yield (*path, "name"), f"has no effect: {entry.label} leaves the network as it is. Leave it out."


def _order_faults(stages: tuple[Stage, ...]) -> Iterator[Fault]:
    takers = [i for i, stage in enumerate(stages) if not is_fixed_size(stage.settings)]
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
    if stage.entry.target == "experiment.methods.blocks:Blocks" and after:
        return f"{label} cannot be followed by {after[0].entry.label}, which cannot leave blocks out. Put it last."
    return None
