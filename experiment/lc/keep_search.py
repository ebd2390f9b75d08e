"""The search for the smallest keep ratio within a loss of accuracy.

Bisection of the keep ratio, in logarithms: accuracy falls as less is kept, so the keep ratios within the loss are an
interval. Ten networks locate its end between 0.001 and 1 to within 1.4 %.

Source: Joseph et al. 2019, https://arxiv.org/abs/1911.02497. Differs: bisection instead of Bayesian optimization.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from experiment.errors import ConfigError, InfeasibleBudget

ROUNDING = 1e-9  # far below one image, far above the error of 0.9 - 0.005


@dataclass(frozen=True)
class KeepSample:
    """A keep ratio that was tried; `top1` is None if it is infeasible."""

    keep: float
    top1: float | None
    within: bool


@dataclass(frozen=True)
class KeepSearchResult:
    """The result of a search.

    Attributes:
        keep: the smallest keep ratio among the samples within the loss; None if there is none.
        samples: in the order in which they were tried.
    """

    keep: float | None
    samples: tuple[KeepSample, ...]


def search_keep(
    top1: Callable[[float], float],
    *,
    reference: float,
    accuracy_loss: float = 0.005,
    samples: int = 10,
    smallest: float = 1e-3,
    precision: float = 0.01,
) -> KeepSearchResult:
    """Find the smallest keep ratio whose loss of accuracy is at most `accuracy_loss`.

    >>> search_keep(lambda keep: 0.99 if keep >= 0.2 else 0.9, reference=0.992).keep
    0.2007864378

    Args:
        top1: compresses a network to a keep ratio and returns its validation accuracy, a fraction; raises
            InfeasibleBudget if no network is that small.
        reference: accuracy of the uncompressed network on the same data.
        accuracy_loss: maximum loss of accuracy, a fraction.
        samples: maximum number of keep ratios to try.
        smallest: smallest keep ratio to try.
        precision: relative precision of the keep ratio at which the search ends.
    Returns: the keep ratio, and all samples.
    Raises: ConfigError: an argument, or an accuracy, is out of range.
    """
    _check(reference, accuracy_loss, samples, smallest, precision)
    low, high = math.log(smallest), 0.0  # low is not known to be within the loss, high is
    tried: list[KeepSample] = []
    while len(tried) < samples and high - low > math.log1p(precision):
        keep = float(f"{math.exp(low if not tried else (low + high) / 2):.10g}")  # as ratios of a grid are rounded
        tried.append(_sample(top1, keep, reference, accuracy_loss))
        if not tried[-1].within:
            low = math.log(keep)
        elif len(tried) == 1:
            break  # the smallest one is within the loss
        else:
            high = math.log(keep)
    return KeepSearchResult(min((sample.keep for sample in tried if sample.within), default=None), tuple(tried))


def is_within(top1: float, reference: float, accuracy_loss: float) -> bool:
    """Whether an accuracy is at most `accuracy_loss` below the reference; NaN is not."""
    return top1 >= reference - accuracy_loss - ROUNDING


def _sample(top1: Callable[[float], float], keep: float, reference: float, accuracy_loss: float) -> KeepSample:
    try:
        returned = top1(keep)
    except InfeasibleBudget:
        return KeepSample(keep, None, False)
    try:
        accuracy = float(returned)  # also from numpy or torch
    except (TypeError, ValueError):
        accuracy = math.inf
    if accuracy > 1:  # NaN: training diverged
        raise ConfigError(f"top1 must return an accuracy as a fraction, in [0, 1]. Got {returned!r}.")
    return KeepSample(keep, accuracy, is_within(accuracy, reference, accuracy_loss))


def _check(reference: float, accuracy_loss: float, samples: int, smallest: float, precision: float) -> None:
    requirements = {
        f"reference must be an accuracy as a fraction, in [0, 1]. Got {reference!r}.": 0 <= reference <= 1,
        f"accuracy_loss must be in [0, 1). Got {accuracy_loss!r}.": 0 <= accuracy_loss < 1,
        f"samples must be at least 1. Got {samples!r}.": samples >= 1,
        f"smallest must be in (0, 1). Got {smallest!r}.": 0 < smallest < 1,
        f"precision must be greater than 0. Got {precision!r}.": precision > 0,
    }
    if problems := [text for text, met in requirements.items() if not met]:
        raise ConfigError(problems)
