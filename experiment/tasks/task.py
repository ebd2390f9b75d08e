"""What a task is: which output of a network is scored, what its targets are, and how it is measured.

Shapes: outputs are (N, K, ...) with the classes, labels or values in dimension 1, as torch's losses expect them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from experiment.errors import ConfigError
from experiment.inputs import scored
from experiment.tasks.distributions import CATEGORICAL, Distribution

Better = Literal["higher", "lower"]
Unit = Literal["fraction", "value"]


@dataclass(frozen=True)
class Metric:
    """A figure of a network on a dataset.

        rmse = Metric("rmse", "RMSE", squared_errors, lambda sums: float((sums[0] / sums[1]).sqrt()),
                      better="lower", unit="value")

    Attributes:
        name: its column in results.csv.
        title: its name in messages, such as "top-1" or "mean IoU".
        update: (outputs, targets) of a batch -> sums (k,), float64, on their device. Sums of all batches, and of all
            processes that evaluate together, are added.
        compute: the total -> the figure.
        better: whether higher or lower figures are better.
        unit: "fraction" for figures in [0, 1] (or [-1, 1]), which are shown in percent; "value" for others.
        joined: `update` returns rows (n, k), one per sample, which are joined instead of added. For figures that no
            sums give, such as average precision.
    """

    name: str
    title: str
    update: Callable[[Tensor, Tensor], Tensor]
    compute: Callable[[Tensor], float]
    better: Better = "higher"
    unit: Unit = "fraction"
    joined: bool = False

    def worst_allowed(self, reference: float, loss: float) -> float:
        """The figure that is worse than `reference` by `loss`: a difference of fractions, else a share of it."""
        difference = loss if self.unit == "fraction" else loss * abs(reference)
        return reference - difference if self.better == "higher" else reference + difference

    def is_as_good(self, value: float, other: float, tolerance: float = 0.0) -> bool:
        """Whether `value` is at least as good as `other`; NaN is not."""
        return value >= other - tolerance if self.better == "higher" else value <= other + tolerance

    def shown(self, value: float) -> str:
        """A figure in messages: `top-1 97.31%`, `perplexity 4.672`."""
        return f"{self.title} {value:.2%}" if self.unit == "fraction" else f"{self.title} {value:.4g}"


def _any_target(where: str, output_size: int, targets: Tensor) -> None:
    """Accept all targets."""


@dataclass(frozen=True)
class Task:
    """What the outputs of a network and the targets of a dataset mean.

    Attributes:
        name: in messages.
        metrics: the first is the primary one, by which networks are compared and selected.
        losses: the names of the losses that fit; the first is the default.
        target: (where, target of one sample) -> a tensor.
            Raises DataError: it is something else than this task needs; `where` names the sample.
        check: (where, number of outputs, targets of a batch). Raises DataError: some cannot be scored.
        outputs: what the network returns -> outputs (N, K, ...).
        loss_kwargs: arguments of the losses, which those in a parameter file override.
        distribution: of the targets that the outputs describe: predictions, divergence from another network.
    """

    name: str
    metrics: tuple[Metric, ...]
    losses: tuple[str, ...]
    target: Callable[[str, Any], Tensor]
    check: Callable[[str, int, Tensor], None] = _any_target
    outputs: Callable[[Any], Tensor] = scored
    loss_kwargs: Mapping[str, object] = field(default_factory=dict)
    distribution: Distribution = CATEGORICAL

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"task {self.name}: needs at least one metric, each with its own name. Got {names}.")
        if not self.losses:
            raise ConfigError(f"task {self.name}: needs the name of at least one loss that fits.")

    @property
    def primary(self) -> Metric:
        """The metric by which networks are compared and selected."""
        return self.metrics[0]
