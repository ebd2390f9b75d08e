"""Settings of the methods that mix families, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from experiment.config.schema.budget import Quantity
from experiment.methods.lowrank.settings import SelectorSettings
from experiment.methods.settings import Positive

Family = Literal["lowrank", "masked", "bits"]


@dataclass(frozen=True, kw_only=True)
class MixSettings(SelectorSettings):
    """Every layer low rank, masked, in fewer bits, or two of these: what changes the network's output the least.

    Attributes:
        families: what layers may become, beside staying whole: `lowrank`, `masked`, `bits`. With `bits`, factors and
            masked weights may have fewer bits, too.
        bits: the dtypes to choose from.
        group_size: inputs per scale of these dtypes, offered beside one scale per output channel; at least 2. Default:
            one scale per output channel alone.
        points: options of a layer in each family that are evaluated in the network, at least 2; the others are
            interpolated.
        images: calibration inputs for this evaluation, at least 1.
        refit: fit what is left of the layers, one after the other, to what the original network computes on the
            calibration data, and let weights that are rounded or masked later compensate the errors of earlier ones.
    """

    families: Annotated[tuple[Family, ...], MinLen(1)] = ("lowrank", "masked", "bits")
    bits: Annotated[tuple[Literal["int8", "int4"], ...], MinLen(1)] = ("int8", "int4")
    group_size: Annotated[int, Ge(2)] | None = None
    points: Annotated[int, Ge(2)] = 6
    images: Positive = 64
    refit: bool = True

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings that have no effect beside the others, each with the reason."""
        if "bits" not in self.families and self.bits != ("int8", "int4"):
            yield "bits", "has no effect without the family bits. Add it to families, or remove this."
        if "bits" not in self.families and self.group_size is not None:
            yield "group_size", "has no effect without the family bits. Add it to families, or remove this."
        if "lowrank" not in self.families and self.foldings != (0,):
            yield "foldings", "has no effect without the family lowrank. Add it to families, or remove this."

    @property
    def never_lowers(self) -> frozenset[Quantity]:
        """The quantities that no choice of forms lowers."""
        if "lowrank" in self.families:
            return frozenset()
        return frozenset({"latency", "memory", *(() if "masked" in self.families else ("parameters", "flops"))})

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that layers may have beside their own."""
        if "bits" not in self.families:
            return ()
        more = () if self.group_size is None else tuple(f"{dtype}/{self.group_size}" for dtype in self.bits)
        return (*self.bits, *more)
