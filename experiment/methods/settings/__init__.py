"""The settings of every method, torch-free, so that planning and cell keys need no torch.

A field left at its default does not enter a cell's key: give a new field the default that reproduces what was before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

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
from experiment.registry import MethodEntry, suggestion

__all__ = [
    "ALDSError3Settings",
    "ALDSKSettings",
    "ALDSPlusSettings",
    "ALDSSettings",
    "ALDSSimple3Settings",
    "ALDSSimple5Settings",
    "BlocksSettings",
    "FTSettings",
    "FakeSettings",
    "GlobalFiltersSettings",
    "KLDSSettings",
    "L1L2Settings",
    "L1Settings",
    "L2Settings",
    "LRankScheme1Settings",
    "LRankSettings",
    "Messi3Settings",
    "Messi5Settings",
    "PCASettings",
    "PFPSettings",
    "RSVDSettings",
    "RandomLayerSettings",
    "RandomSettings",
    "ReferenceSettings",
    "SNIPSettings",
    "SVDEnergySettings",
    "SVDErrorSettings",
    "SVDNuclearSettings",
    "SVDSettings",
    "SiPPSettings",
    "SlimmingSettings",
    "SoftNetSettings",
    "ThiNetSettings",
    "TorchPruneSettings",
    "UniformFiltersSettings",
    "UniformSettings",
    "WTLayerSettings",
    "WTSettings",
    "make_settings",
]


def make_settings(entry: MethodEntry, values: Mapping[str, object]) -> object:
    """The settings dataclass of a method from plain values (lists become tuples).

    Raises: ConfigError: an unknown setting, or a value of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError  # dear to import, and not needed to compress

    known = {f.name for f in fields(entry.settings)}
    unknown = [k for k in values if k not in known]
    if unknown:
        have = f"It has {', '.join(sorted(known))}." if known else "It has no settings."
        raise ConfigError([f"{entry.label} has no setting '{k}'.{suggestion(k, known)} {have}" for k in unknown])
    try:
        return TypeAdapter(entry.settings).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(
            [f"{'.'.join(map(str, e['loc']))}: {e['msg']}. Got {e['input']!r}." for e in error.errors()]
        ) from error
