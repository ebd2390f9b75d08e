"""Paired statistics of networks that share their reference networks and test samples.

Both are random: other reference networks and other samples would give other figures. The variance of a mean over R
networks and N samples has a part of each, and that of their interaction counts once:

    V = V_samples + max(0, V_networks - V_both)

V_samples is that of the mean over networks; it is what a bootstrap over samples gives with infinitely many draws.
Intervals are those of Student's t with Satterthwaite's degrees of freedom; p-values are more careful where networks are
few. Of one network, both are about test samples alone.

Shape suffixes: R = reference networks, N = test samples.

Sources: Satterthwaite 1946, https://doi.org/10.2307/3002019; Howe 1974, J. Am. Stat. Assoc. 69, 789
(a quantile for each part); Bonett and Price 2012,
https://doi.org/10.3102/1076998611411915 (two more samples, one for each network of a pair, of answers right or wrong);
Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953; Holm 1979, https://www.jstor.org/stable/4615733
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[np.floating]"
LEVEL = 0.95
MOST_FREEDOM, SMALLEST_P = 1e9, 1e-15


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and the two-sided p-value of the hypothesis that it is 0."""

    value: float
    low: float
    high: float
    p: float

    def is_zero(self) -> bool:
        """Whether the mean is 0 but for the errors of floating-point sums."""
        return abs(self.value) < 1e-9


def paired_difference(first_RN: Array, second_RN: Array, usual: float = 0.0) -> Estimate:
    """The mean of `first` minus `second`, whose rows are equal networks and whose columns equal samples.

    Args:
        first_RN, second_RN: a value per network and sample, or figures (R, 1) of networks whose samples are unknown.
            Then the interval needs two networks; of one it is infinite.
        usual: the variance of networks (`between_networks`) that is usual for such pairs. The p-value takes no smaller
            one: of two or three networks some pairs agree by chance.

    Example:
        >>> paired_difference(right_of_WT, right_of_FT)
        Estimate(value=0.012, low=0.004, high=0.020, p=0.003)
    """
    import numpy as np

    binary = all(bool(((x == 0) | (x == 1)).all()) for x in (first_RN, second_RN)) and first_RN.shape[1] > 1
    return _interval(np.subtract(first_RN, second_RN, dtype=np.float64), 1.0 if binary else 0.0, usual)


def between_networks(first_RN: Array, second_RN: Array) -> float:
    """The variance of the mean difference that R networks show; 0 for one."""
    of_networks = first_RN.mean(axis=1, dtype="float64") - second_RN.mean(axis=1, dtype="float64")
    return float(of_networks.var(ddof=1)) / len(of_networks) if len(of_networks) > 1 else 0.0


def mean_of(values_RN: Array) -> Estimate:
    """The mean of one network's, or several networks', values: Wilson's interval for one network's right answers."""
    binary = bool(((values_RN == 0) | (values_RN == 1)).all()) and values_RN.shape[1] > 1
    if binary and len(values_RN) == 1:
        return _wilson(int(values_RN.sum()), values_RN.shape[1])
    return _interval(values_RN.astype("float64"), 0.0, 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: one of them is below alpha by chance with a probability of at most alpha."""
    import numpy as np

    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    rising = np.maximum.accumulate(np.minimum(1.0, factors * np.asarray(p_values)[order]))
    adjusted = np.empty(len(p_values))
    adjusted[order] = rising
    return [float(p) for p in adjusted]


def _interval(values_RN: npt.NDArray[np.float64], added: float, usual: float) -> Estimate:
    """Student's interval; `added` and its negative are the values of two more samples in one of the networks."""
    import numpy as np
    from scipy.special import stdtrit

    networks, samples = values_RN.shape
    value, of_samples = float(values_RN.mean()), values_RN.mean(axis=0)
    if added:
        of_samples = np.append(of_samples, [added / networks, -added / networks])
    center = float(of_samples.mean())
    over_samples = float(of_samples.var(ddof=1)) / len(of_samples) if samples > 1 else 0.0
    between = float(values_RN.mean(axis=1).var(ddof=1)) / networks if networks > 1 else 0.0
    both = _interaction(values_RN) if samples > 1 and networks > 1 else 0.0
    if networks == samples == 1:
        return Estimate(value, -math.inf, math.inf, 1.0)
    variance = over_samples + max(0.0, between - both)
    if variance == 0:
        return Estimate(value, value, value, float(value == 0))
    freedom = max(1.0, (networks - 1) * (variance / between) ** 2) if between > 0 else math.inf
    half = float(stdtrit(min(freedom, MOST_FREEDOM), (1 + LEVEL) / 2)) * math.sqrt(variance)
    p = _p_value(abs(center), over_samples, max(0.0, over_samples - both), max(between, usual), networks)
    return Estimate(value, center - half, center + half, p)


def _interaction(values_RN: npt.NDArray[np.float64]) -> float:
    """The part of the variance of the mean that networks and samples have together."""
    networks, samples = values_RN.shape
    within = float(values_RN.var(axis=1, ddof=1).mean()) - float(values_RN.mean(axis=0).var(ddof=1))
    return float(max(0.0, within) / samples / (networks - 1))


def _p_value(distance: float, over_samples: float, alone: float, between: float, networks: int) -> float:
    """The level at which an interval of this half-width ends, whose parts have quantiles of their own.

    The part of networks has R - 1 degrees of freedom, that of samples `alone` many. The interval is wider than that of
    Satterthwaite: with few networks whose figures happen to be close, that one orders too many methods. Two networks
    count as three, since `between` is not below that of other pairs.
    """
    from scipy.special import ndtri, stdtrit

    def half(p: float) -> float:
        z = float(-ndtri(p / 2))
        t = float(-stdtrit(max(2, networks - 1), p / 2)) if networks > 1 else 0.0
        return math.sqrt(max(z**2 * over_samples, z**2 * alone + t**2 * between))

    low, high = math.log(SMALLEST_P), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if half(math.exp(middle)) < distance else (middle, high)
    return math.exp(high)


def _wilson(right: int, number: int) -> Estimate:
    from scipy.special import ndtri

    z = float(ndtri((1 + LEVEL) / 2))
    share = right / number
    center = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return Estimate(share, center - half, center + half, math.nan)
