"""Grids of keep ratios: the formulas behind `experiments.spacing`, on plain numbers.

Every ratio is rounded to 10 significant digits, so that a grid is the same on every machine whatever its `pow` does.
"""

from __future__ import annotations

import math

MAX_RATIOS = 10_000


def interval(kind: str, num: int, largest: float, smallest: float) -> list[float]:
    """`num` keep ratios from `largest` down to `smallest`; a single one is `largest`.

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
        num_to_half: steps until the ratio reaches 0.5; need not be whole.
    """
    a = math.log(2) / math.log1p(num_to_half)
    count = max(1, int(smallest ** (-1 / a)))
    return [_rounded((i + 1) ** -a) for i in range(1, count + 1)]


def harmonic_log10_count(num_to_half: float, smallest: float) -> float:
    """log10 of the number of ratios that `harmonic` makes: they can be more than a machine holds."""
    return -math.log10(smallest) * math.log1p(num_to_half) / math.log(2)


def chunks(ratios: list[float], num: int) -> list[list[float]]:
    """`ratios` in `num` contiguous parts of sizes as equal as can be, longer ones first."""
    size, longer = divmod(len(ratios), num)
    ends = [size * (i + 1) + min(i + 1, longer) for i in range(num)]
    return [ratios[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.10g}")
