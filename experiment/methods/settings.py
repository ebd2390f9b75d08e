"""Settings that belong to no family of methods, or to several (Condensa's schemes); without torch.

Families have their own settings: `lowrank/settings.py`, `masks/settings.py`, `filters/settings.py`. All settings
are frozen dataclasses in modules that do not import torch, so that planning and result keys do not need it. A field at
its default does not enter a key: give a new field the default that reproduces the previous behaviour.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

Positive = Annotated[int, Ge(1)]
Density = Annotated[float, Gt(0), Le(1)]
Dtype = Literal["float16", "bfloat16", "int8", "int4", "codebook2", "codebook4", "codebook16", "codebook256"]
INTEGERS = ("int8", "int4")
Criteria = Literal["l2norm", "max", "min", "mean", "sum"]


@dataclass(frozen=True)
class NoSettings:
    """For methods that have no settings."""


@dataclass(frozen=True)
class ReferenceSettings:
    """The uncompressed network."""


@dataclass(frozen=True)
class FakeSettings:
    """The uncompressed network, retrained like the compressed ones: the control for the effect of more epochs."""


@dataclass(frozen=True)
class QuantizeSettings:
    """Quantized weights of all convolutions and linear layers.

    Nothing is removed, so the keep ratio has no effect.

    Attributes:
        dtype: `float16` and `bfloat16` round weights and biases. `int8` and `int4` round weights, symmetrically with a
            scale per output channel, and leave biases in float32. `codebook2`, `codebook4`, `codebook16` and
            `codebook256` replace the weights of a layer by 2 to 256 values of its own, the nearest by k-means, and
            leave biases in float32; masked weights stay zero.
        ignore: name patterns (fnmatch) of layers to keep in float32.
        layers: name pattern (fnmatch) -> dtype for the layers that it matches, instead of `dtype`. Two patterns may not
            match the same layer.
        group_size: inputs per scale of `int8` and `int4`, at least 2: within an output channel, kernel elements count
            as inputs. Default: one scale per output channel.
        rounding: of `int8` and `int4`: `nearest`, or `compensated`, which needs calibration data: weights that are
            rounded later make up for what earlier ones change in the layer's outputs. Retraining rounds to nearest.
    """

    fixed_size: ClassVar[bool] = True

    dtype: Dtype = "float16"
    ignore: tuple[str, ...] = ()
    layers: Mapping[str, Dtype] = field(default_factory=dict)
    group_size: Annotated[int, Ge(2)] | None = None
    rounding: Literal["nearest", "compensated"] = "nearest"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings that have no effect beside the others, each with the reason."""
        if {self.dtype, *self.layers.values()}.isdisjoint(INTEGERS):
            why = f"has no effect on {self.dtype}. Set dtype to int8 or int4, or remove it."
            if self.group_size is not None:
                yield "group_size", why
            if self.rounding != "nearest":
                yield "rounding", why


@dataclass(frozen=True)
class Scheme:
    """One method of a composition: its name and settings."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComposeSettings:
    """Several methods in sequence, each applied to the result of the previous one.

    Source: Joseph et al. 2020, A Programmable Approach to Neural Network Compression, https://arxiv.org/abs/1911.02497

    Attributes:
        schemes: the methods in order, each a name or `{name, settings}`. At most one takes the keep ratio; the others
            need settings that fix their size, such as a density.
    """

    schemes: tuple[Scheme, ...]


@dataclass(frozen=True)
class LayerDensity:
    """The density of one layer.

    Attributes:
        density: share of the layer's units to keep, in (0, 1].
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    density: Density


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
    """Settings of all Condensa schemes. Their units are weights, blocks, neurons or filters.

    Source: Joseph et al. 2020, A Programmable Approach to Neural Network Compression, https://arxiv.org/abs/1911.02497

    Attributes:
        density: share of the units of all layers of the original network to keep, in (0, 1]: int(density * number) of
            them, for any keep ratio. Default: as many as the keep ratio allows.
        ignore: name patterns (fnmatch) of layers that are not pruned and do not count.
        layers: name pattern (fnmatch) -> {density: ...}, for layers with a density of their own; the others share
            `density`. Two patterns may not match the same layer.
    """

    density: Density | None = None
    ignore: tuple[str, ...] = ()
    layers: Mapping[str, LayerDensity] = field(default_factory=dict)

    @property
    def fixed_size(self) -> bool:
        """Whether the density decides the size, so that the keep ratio has no effect."""
        return self.density is not None


@dataclass(frozen=True, kw_only=True)
class UnitSettings(DensitySettings):
    """Settings of Condensa schemes whose units are several weights.

    Attributes:
        criteria: the importance of a unit from the magnitudes of its weights: `l2norm` (the root of the sum of
            squares), `max`, `min`, `mean` or `sum`.
        align: the number of units that a layer keeps is a multiple of this, at least 1, rounded down.
    """

    criteria: Criteria = "l2norm"
    align: Positive = 1
