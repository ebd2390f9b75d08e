"""The highest compression that loses no more than so much accuracy, found with a few networks.

Condensa searches by Bayesian optimisation. Of one number, with an accuracy that falls as less is kept, the level set is
an interval, and halving it, in log keep, is the search whose worst case is the best: ten networks find the edge
anywhere from 0.001 to 1 to within 1.4 %. So no optimiser library is needed.

Source: Joseph et al. 2019, https://arxiv.org/abs/1911.02497. Differs: bisection; at least as deterministic as the
networks are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from experiment.errors import ConfigError, InfeasibleBudget

ROUNDING = 1e-9  # far below one image, far above the error of 0.9 - 0.005


@dataclass(frozen=True)
class Sample:
    """A keep ratio that was tried; `top1` is None where no network can be that small."""

    keep: float
    top1: float | None
    within: bool


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        keep: the smallest keep ratio that was tried and is within the loss; None where none was.
        samples: everything that was tried, in order.
    """

    keep: float | None
    samples: tuple[Sample, ...]


def search_keep(
    top1: Callable[[float], float],
    *,
    reference: float,
    accuracy_loss: float = 0.005,
    samples: int = 10,
    smallest: float = 1e-3,
    precision: float = 0.01,
) -> Search:
    """The smallest keep ratio whose network stays within a loss of accuracy.

    Args:
        top1: makes the network of a keep ratio and returns its accuracy, a fraction, on data that it has not learnt
            from and is not tested on; an InfeasibleBudget that it raises means that a network cannot be that small.
        reference: accuracy of the uncompressed network on the same data.
        accuracy_loss: the most that may be lost, a fraction.
        samples: the most networks that are made.
        smallest: the smallest keep ratio that is tried.
        precision: what is known more precisely than this, relative to itself, is not searched further.
    Raises: ConfigError: a number is out of its range; an accuracy too.
    """
    _check(reference, accuracy_loss, samples, smallest, precision)
    low, high = math.log(smallest), 0.0  # nothing below low is known to do, and everything is kept at high
    tried: list[Sample] = []
    while len(tried) < samples and high - low > math.log1p(precision):
        keep = float(f"{math.exp(low if not tried else (low + high) / 2):.10g}")  # as ratios of a grid are rounded
        tried.append(_sample(top1, keep, reference, accuracy_loss))
        if not tried[-1].within:
            low = math.log(keep)
        elif len(tried) == 1:
            break  # the smallest will do
        else:
            high = math.log(keep)
    return Search(min((sample.keep for sample in tried if sample.within), default=None), tuple(tried))


def is_within(top1: float, reference: float, accuracy_loss: float) -> bool:
    """Whether an accuracy is at most so much below the reference's; NaN is not."""
    return top1 >= reference - accuracy_loss - ROUNDING


def _sample(top1: Callable[[float], float], keep: float, reference: float, accuracy_loss: float) -> Sample:
    try:
        told = top1(keep)
    except InfeasibleBudget:
        return Sample(keep, None, False)
    try:
        accuracy = float(told)  # of numpy or torch, too
    except (TypeError, ValueError):
        accuracy = math.inf
    if accuracy > 1:  # NaN is an answer: it diverged
        raise ConfigError(f"top1 must return an accuracy as a fraction, in [0, 1]. Got {told!r}.")
    return Sample(keep, accuracy, is_within(accuracy, reference, accuracy_loss))


def _check(reference: float, accuracy_loss: float, samples: int, smallest: float, precision: float) -> None:
    problems = []
    if not 0 <= reference <= 1:
        problems.append(f"reference must be an accuracy as a fraction, in [0, 1]. Got {reference!r}.")
    if not 0 <= accuracy_loss < 1:
        problems.append(f"accuracy_loss must be in [0, 1). Got {accuracy_loss!r}.")
    if samples < 1:
        problems.append(f"samples must be at least 1. Got {samples!r}.")
    if not 0 < smallest < 1:
        problems.append(f"smallest must be in (0, 1). Got {smallest!r}.")
    if precision <= 0:
        problems.append(f"precision must be greater than 0. Got {precision!r}.")
    if problems:
        raise ConfigError(problems)
