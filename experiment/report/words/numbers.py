"""Numbers as text: digits, dashes and units."""

import math
from collections.abc import Sequence

MISSING = "–"  # noqa: RUF001  an en dash for a missing number
MINUS = "−"  # noqa: RUF001  the typographic minus


def percent(share: float, digits: int = 1) -> str:
    """A fraction in percent, without the percent sign: 0.8312 -> `83.1`."""
    return MISSING if math.isnan(share) else f"{100 * share:.{digits}f}".replace("-", MINUS)


def change(share: float, digits: int = 2) -> str:
    """A difference of two fractions in percentage points, with its sign: -0.0047 -> `−0.47`."""
    if math.isnan(share):
        return MISSING
    text = f"{100 * share:+.{digits}f}"
    return (text.replace("+", "") if float(text) == 0 else text).replace("-", MINUS)


def percent_spread(share: float, std: float, digits: int = 2) -> str:
    """Mean and standard deviation in percent: `91.40 ± 0.12`, or the mean alone if there is only one value."""
    return percent(share, digits) if math.isnan(std) else f"{percent(share, digits)} ± {percent(std, digits)}"


def spread(value: float, std: float, is_fraction: bool) -> str:
    """Mean and standard deviation: of fractions in percent, else as plain numbers."""
    return percent_spread(value, std) if is_fraction else number_spread(value, std)


def number_spread(value: float, std: float, digits: int = 3) -> str:
    """Mean and standard deviation of a plain number: `0.312 ± 0.004`."""
    if math.isnan(value):
        return MISSING
    return f"{value:.{digits}f}" if math.isnan(std) else f"{value:.{digits}f} ± {std:.{digits}f}"


def factor(keep: float) -> str:
    """The reduction factor of a keep ratio: 0.25 -> `4.0×`."""
    if math.isnan(keep) or keep <= 0:
        return MISSING
    return f"{1 / keep:.1f}×" if keep > 0.01 else f"{1 / keep:.0f}×"  # noqa: RUF001


def whole(value: float) -> str:
    """A count with thousands separators."""
    return MISSING if math.isnan(value) else f"{round(value):,}"


def megas(value: float) -> str:
    """A large count with its prefix: 40813184 -> `40.8 M`."""
    if math.isnan(value):
        return MISSING
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f}"


def kilobytes(value: float) -> str:
    """Bytes in kB (1000 bytes), with one decimal."""
    return MISSING if math.isnan(value) else f"{value / 1000:,.1f}"


def duration(seconds: float) -> str:
    """`0.31 s`, `4.0 s`, `40 s`, `12 min`, `3.5 h`; two significant digits below 10 s."""
    if math.isnan(seconds):
        return MISSING
    if seconds < 10:
        return f"{round(seconds, 4):#.2g}".rstrip(".") + " s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def epochs(counts: Sequence[float]) -> str:
    """Counts of epochs with their unit: `1 epoch`, `0, 91 epochs`."""
    return f"{', '.join(f'{count:g}' for count in counts)} epoch{'' if list(counts) == [1] else 's'}"


def keep(value: float) -> str:
    """A keep ratio with four significant digits and no trailing zeros."""
    return MISSING if math.isnan(value) else f"{value:.4g}"
