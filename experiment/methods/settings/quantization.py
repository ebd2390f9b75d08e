"""The settings of quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Dtype = Literal["float16", "bfloat16", "int8"]


@dataclass(frozen=True)
class QuantizeSettings:
    """All convolutions and linear layers in fewer bits; nothing is removed, so that the keep ratio has no say.

    Attributes:
        dtype: float16 and bfloat16 are for weights and biases; int8, symmetric with a scale an output channel, is for
            weights, and biases stay float32.
        ignore: name patterns (fnmatch) of layers that stay float32.
        layers: name pattern -> dtype of the layers that it names; two may not name the same.
    """

    fixed_size: ClassVar[bool] = True

    dtype: Dtype = "float16"
    ignore: tuple[str, ...] = ()
    layers: Mapping[str, Dtype] = field(default_factory=dict)
