"""The blocks of `experiments.spacing`, and the formulas of their keep ratios.

Every ratio is rounded to 10 significant digits, so that a grid does not depend on the machine's `pow`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from experiment.config.schema.training import Block, Conflict, Keep, Number, Whole, refuse

MAX_RATIOS = 10_000


class Interval(Block):
    """Keep ratios from maxVal down to minVal."""

    type: Literal["geometric", "linear", "cubic", "harmonic2"]
    """Spacing of the keep ratios."""
    num_intervals: Annotated[Whole, Field(ge=1, le=MAX_RATIOS)]
    """Number of keep ratios. 1 means maxVal only."""
    max_val: Keep
    """Largest keep ratio."""
    min_val: Keep
    """Smallest keep ratio."""

    @field_validator("min_val")
    @classmethod
    def _below_max_val(cls, smallest: float, info: ValidationInfo) -> float:
        largest = info.data.get("max_val")
        if largest is not None and smallest > largest:
            refuse(smallest, [((), f"must be at most maxVal ({largest:g}). Got {smallest:g}.")])
        return smallest

    def ratios(self) -> list[float]:
        """The keep ratios, descending."""
        return interval(self.type, self.num_intervals, self.max_val, self.min_val)


class Harmonic(Block):
    """Keep ratios that decrease as a power of 1/i."""

    type: Literal["harmonic"]
    """Spacing of the keep ratios."""
    num_intervals: Annotated[Number, Field(gt=0)]
    """Number of steps until the keep ratio is 0.5. May be fractional."""
    min_val: Keep
    """Approximate smallest keep ratio: the last one may lie just below."""

    @field_validator("min_val")
    @classmethod
    def _not_too_many(cls, smallest: float, info: ValidationInfo) -> float:
        steps = info.data.get("num_intervals")
        if steps is not None and (power := harmonic_log10_count(steps, smallest)) > math.log10(MAX_RATIOS):
            text = (
                f"too small: with numIntervals {steps:g} there are about 10^{power:.0f} keep ratios. Got {smallest:g}."
            )
            refuse(smallest, [((), text)])
        return smallest

    def ratios(self) -> list[float]:
        """The keep ratios, descending."""
        return harmonic(self.num_intervals, self.min_val)


class Manual(Block):
    """A list of keep ratios."""

    type: Literal["manual"]
    """Spacing of the keep ratios."""
    values: Annotated[list[Keep], Field(min_length=1, max_length=MAX_RATIOS)]
    """The keep ratios."""

    def ratios(self) -> list[float]:
        """The keep ratios, as given."""
        return list(self.values)


Spacing = Annotated[Interval | Harmonic | Manual, Field(discriminator="type")]
SPACINGS = ("geometric", "linear", "cubic", "harmonic2", "harmonic", "manual")


def ratio_conflicts(blocks: Sequence[Interval | Harmonic | Manual], falling: bool) -> Iterator[Conflict]:
    """The first conflict of each block with the keep ratios before it."""
    seen: dict[str, int] = {}
    previous = 1.0
    if sum(len(block.ratios()) for block in blocks) > MAX_RATIOS:
        yield (), f"more than {MAX_RATIOS:,} keep ratios in total."
        return
    for i, block in enumerate(blocks):
        for ratio in block.ratios():
            shown = f"{ratio:.6g}"  # as shown in results: ratios that look the same there are equal
            what = ""
            if not 0 < ratio <= 1:
                what = f"gives a keep ratio outside (0, 1]: {ratio}."
            elif shown in seen:
                other = "the same block" if seen[shown] == i else f"spacing[{seen[shown]}]"
                what = f"repeats the keep ratio {shown} of {other}. Give each keep ratio once."
            elif falling and ratio > previous:
                what = f"keep ratios must decrease in a cascade. Got {shown} after {previous:.6g}."
            if what:
                yield (i,), what
                break
            seen[shown] = i
            previous = ratio


def interval(kind: str, num: int, largest: float, smallest: float) -> list[float]:
    """`num` keep ratios from `largest` down to `smallest`; only `largest` if `num` is 1.

    With i = 0, ..., num - 1:
        geometric   r_i = largest * (smallest / largest)^(i / (num - 1))
        linear      r_i = largest - (largest - smallest) * i / (num - 1)
        cubic       r_i = smallest + (largest - smallest) * (1 - i / (num - 1))^3
        harmonic2   r_i = largest * (i + 1)^(-a),  a = ln(largest / smallest) / ln(num)
    """
    if num == 1:
        return [_rounded(largest)]
    steps = range(num)
    if kind == "geometric":
        ratios = [largest * (smallest / largest) ** (i / (num - 1)) for i in steps]
    elif kind == "linear":
        ratios = [largest - (largest - smallest) * i / (num - 1) for i in steps]
    elif kind == "cubic":
        ratios = [smallest + (largest - smallest) * (1 - i / (num - 1)) ** 3 for i in steps]
    else:
        assert kind == "harmonic2"
        a = math.log(largest / smallest) / math.log(num)
        ratios = [largest * (i + 1) ** -a for i in steps]
    return [_rounded(r) for r in ratios]


def harmonic(num_to_half: float, smallest: float) -> list[float]:
    """r_i = (i + 1)^(-a) for i = 1, ..., max(1, floor(smallest^(-1/a))), with a = ln 2 / ln(1 + num_to_half).

    Args:
        num_to_half: number of steps until the ratio is 0.5; may be fractional.
    """
    a = math.log(2) / math.log1p(num_to_half)
    count = max(1, int(smallest ** (-1 / a)))
    return [_rounded((i + 1) ** -a) for i in range(1, count + 1)]


def harmonic_log10_count(num_to_half: float, smallest: float) -> float:
    """log10 of the number of ratios of `harmonic`, which may not fit into memory."""
    return -math.log10(smallest) * math.log1p(num_to_half) / math.log(2)


def chunks(ratios: list[float], num: int) -> list[list[float]]:
    """`ratios` in `num` contiguous chunks of nearly equal length, longer ones first."""
    size, longer = divmod(len(ratios), num)
    ends = [size * (i + 1) + min(i + 1, longer) for i in range(num)]
    return [ratios[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.10g}")
