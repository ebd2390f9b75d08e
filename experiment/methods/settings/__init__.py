"""The settings of every method, torch-free, so that planning and cell keys need no torch.

A field left at its default does not enter a cell's key: give a new field the default that reproduces what was before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from experiment.errors import ConfigError
from experiment.methods.settings.lowrank import (
    ALDSError3Settings,
    ALDSKSettings,
    ALDSPlusSettings,
    ALDSSettings,
    ALDSSimple3Settings,
    ALDSSimple5Settings,
    KLDSSettings,
    LRankScheme1Settings,
    LRankSettings,
    Messi3Settings,
    Messi5Settings,
    PCASettings,
    RSVDSettings,
    SVDEnergySettings,
    SVDErrorSettings,
    SVDNuclearSettings,
    SVDSettings,
)
from experiment.methods.settings.pruning import (
    BlocksSettings,
    FakeSettings,
    FTSettings,
    GlobalFiltersSettings,
    L1L2Settings,
    L1Settings,
    L2Settings,
    PFPSettings,
    RandomLayerSettings,
    RandomSettings,
    ReferenceSettings,
    SiPPSettings,
    SlimmingSettings,
    SNIPSettings,
    SoftNetSettings,
    ThiNetSettings,
    TorchPruneSettings,
    UniformFiltersSettings,
    UniformSettings,
    WTLayerSettings,
    WTSettings,
)
from experiment.methods.settings.quantization import QuantizeSettings
from experiment.methods.settings.schemes import (
    BlockPruneSettings,
    ComposeSettings,
    LayerDensity,
    PruneSettings,
    Scheme,
    StructurePruneSettings,
)
from experiment.registry import MethodEntry, suggestion

if TYPE_CHECKING:
    from experiment.config.tree import KeyPath

__all__ = [
    "ALDSError3Settings",
    "ALDSKSettings",
    "ALDSPlusSettings",
    "ALDSSettings",
    "ALDSSimple3Settings",
    "ALDSSimple5Settings",
    "BlockPruneSettings",
    "BlocksSettings",
    "ComposeSettings",
    "FTSettings",
    "FakeSettings",
    "GlobalFiltersSettings",
    "KLDSSettings",
    "L1L2Settings",
    "L1Settings",
    "L2Settings",
    "LRankScheme1Settings",
    "LRankSettings",
    "LayerDensity",
    "Messi3Settings",
    "Messi5Settings",
    "PCASettings",
    "PFPSettings",
    "PruneSettings",
    "QuantizeSettings",
    "RSVDSettings",
    "RandomLayerSettings",
    "RandomSettings",
    "ReferenceSettings",
    "SNIPSettings",
    "SVDEnergySettings",
    "SVDErrorSettings",
    "SVDNuclearSettings",
    "SVDSettings",
    "Scheme",
    "SiPPSettings",
    "SlimmingSettings",
    "SoftNetSettings",
    "StructurePruneSettings",
    "ThiNetSettings",
    "TorchPruneSettings",
    "UniformFiltersSettings",
    "UniformSettings",
    "WTLayerSettings",
    "WTSettings",
    "is_fixed_size",
    "make_settings",
    "setting_faults",
]


def make_settings(entry: MethodEntry, values: Mapping[str, object]) -> object:
    """The settings dataclass of a method from plain values (lists become tuples).

    Raises: ConfigError: an unknown setting, or a value of the wrong type.
    """
    from experiment.config.tree import dotted

    made, faults = _validated(entry, values)
    if faults:
        raise ConfigError([f"{dotted(path)}: {text}" for path, text in faults])
    return made


def is_fixed_size(settings: object) -> bool:
    """Whether a method's settings themselves decide the size, so that no keep ratio does: a true `fixed_size`."""
    return bool(getattr(settings, "fixed_size", False))


def setting_faults(entry: MethodEntry, values: Mapping[str, object]) -> list[tuple[KeyPath, str]]:
    """Everything that is wrong with a method's settings, each with its path in `values`."""
    return _validated(entry, values)[1]


def _validated(entry: MethodEntry, values: Mapping[str, object]) -> tuple[object, list[tuple[KeyPath, str]]]:
    from pydantic import TypeAdapter, ValidationError  # dear to import, and not needed to compress

    from experiment.config.explain import expectation

    known = {f.name for f in fields(entry.settings)}
    have = f"It has {', '.join(sorted(known))}." if known else "It has no settings."
    faults: list[tuple[KeyPath, str]] = [
        ((key,), f"{entry.label} has no such setting.{suggestion(key, known)} {have}")
        for key in values
        if key not in known
    ]
    made: object = None
    try:
        made = TypeAdapter(entry.settings).validate_python({k: v for k, v in values.items() if k in known})
    except ValidationError as error:
        faults += [(e["loc"], expectation(e)) for e in error.errors()]
    if isinstance(made, ComposeSettings) and not faults:
        from experiment.methods.chain import chain_faults

        faults += chain_faults(made)
    return made, faults
