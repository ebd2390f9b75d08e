"""The settings of every method, torch-free, so that planning and cell keys need no torch.

A field left at its default does not enter a cell's key: give a new field the default that reproduces what was before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from experiment.errors import ConfigError
from experiment.registry import MethodEntry, suggestion


@dataclass(frozen=True)
class ReferenceSettings:
    """The uncompressed network."""


@dataclass(frozen=True)
class FakeSettings:
    """The uncompressed network, retrained like the compressed ones: the control for 'more epochs'."""


@dataclass(frozen=True)
class WTSettings:
    """Weight thresholding: the largest magnitudes of the whole network stay."""


@dataclass(frozen=True)
class FTSettings:
    """Filter thresholding: in every layer the same share of filters, those of largest l1 norm, stays.

    Attributes:
        fold: add what removed channels contributed (bias, BatchNorm shift) to the bias or BatchNorm of what follows.
        ignore: name patterns (fnmatch) of layers whose filters all stay; the layers that give the output always do.
    """

    fold: bool = False
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class SVDSettings:
    """The same share of the full rank in every layer."""


@dataclass(frozen=True)
class SVDEnergySettings:
    """The same share of the squared singular values (`energy`) discarded in every layer."""


@dataclass(frozen=True)
class SVDErrorSettings:
    """The same relative operator-norm error in every layer."""


@dataclass(frozen=True)
class ALDSSettings:
    """Number of groups and rank of every layer together, minimising the largest relative error of all layers.

    Attributes:
        error: the relative error of a layer decomposed in k groups: `reference` (largest of the groups' sigma_{j+1}
            over the layer's sigma_1, what the paper's code computes), `exact` (operator norm of the residual over that
            of the weight) or `bound` (`reference` times sqrt(k), the paper's theorem).
    """

    error: Literal["reference", "exact", "bound"] = "reference"


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
