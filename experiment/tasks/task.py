"""What a task is: which output of a network is scored, what its targets are, and how it is measured.

Shapes: outputs are (N, K, ...) with the classes, labels or values in dimension 1, as torch's losses expect them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from experiment.errors import ConfigError, DataError, ExperimentError, described, first_line, raised_at
from experiment.inputs import in_words, scored
from experiment.tasks.distributions import BERNOULLI, CATEGORICAL, Distribution

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
        mappable: `torch.vmap` can apply `update` to all samples at once, which scores each of them alone much faster.
            It must neither read values nor select by them.
    """

    name: str
    title: str
    update: Callable[[Tensor, Tensor], Tensor]
    compute: Callable[[Tensor], float]
    better: Better = "higher"
    unit: Unit = "fraction"
    joined: bool = False
    mappable: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ConfigError(f"metric {described(self.name)}: expected letters, digits and _ as the name of a column.")
        for what, found, known in (("better", self.better, get_args(Better)), ("unit", self.unit, get_args(Unit))):
            if found not in known:
                raise ConfigError(f"metric {self.name}: {what} must be {' or '.join(known)}. Got {described(found)}.")

    def figure(self, total: Tensor) -> float:
        """What `compute` makes of the total, checked.

        Raises: ConfigError: it fails, or returns no number, or a fraction outside [-1, 1].
        """
        try:
            value = self.compute(total)
        except Exception as error:  # of the user's own metric
            text = f"compute raised {type(error).__name__}: {first_line(error)}{raised_at(error)}"
            raise ConfigError(f"metric {self.name}: {text}. Return math.nan where it is not defined.") from error
        if not isinstance(value, int | float):
            raise ConfigError(f"metric {self.name}: compute must return a number, float(...). Got {in_words(value)}.")
        if self.unit == "fraction" and abs(value) > 1 + 1e-6:
            text = f"its unit is fraction, so that figures lie in [0, 1] (or [-1, 1]). Got {value:g}"
            raise ConfigError(f"metric {self.name}: {text}. Divide it, or set unit='value'.")
        return float(value)

    def of_each(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What `update` returns for every sample alone, (n, k)."""
        if self.mappable:
            return torch.vmap(lambda one, target: self.update(one[None], target[None]))(outputs, y)
        outputs, y = outputs.cpu(), y.cpu()
        return torch.stack([self.update(outputs[i : i + 1], y[i : i + 1]) for i in range(len(y))])

    def try_out(self, outputs: Tensor, y: Tensor) -> None:
        """Measure a batch, and its first sample as another batch.

        Raises: ConfigError: what `update` or `compute` returns cannot be used.
        """
        parts: list[Tensor] = []
        for n in (len(y), 1):
            try:
                found = self.update(outputs[:n], y[:n])
                if self.mappable:
                    self.of_each(outputs[:n], y[:n])
            except Exception as error:  # torch's, or of the user's own metric
                shapes = f"outputs of shape {tuple(outputs[:n].shape)} and targets of shape {tuple(y[:n].shape)}"
                text = f"{type(error).__name__}: {first_line(error)}{raised_at(error)}"
                raise ConfigError(f"metric {self.name}: cannot score {shapes}: {text}.") from error
            if (
                not isinstance(found, Tensor)
                or found.dim() != 1 + self.joined
                or (parts and found.shape[self.joined :] != parts[0].shape[self.joined :])
            ):
                expected = "rows (n, k), since joined=True" if self.joined else "sums (k,)"
                text = f"update must return {expected}, with the same k for every batch"
                raise ConfigError(f"metric {self.name}: {text}. Got {in_words(found)} for a batch of {n}.")
            parts.append(found)
        self.figure((torch.cat(parts) if self.joined else parts[0] + parts[1]).cpu())

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
        vocabulary: whether classes are tokens, of which a part of the data need not contain all.
    """

    name: str
    metrics: tuple[Metric, ...]
    losses: tuple[str, ...]
    target: Callable[[str, Any], Tensor]
    check: Callable[[str, int, Tensor], None] = _any_target
    outputs: Callable[[Any], Tensor] = scored
    loss_kwargs: Mapping[str, object] = field(default_factory=dict)
    distribution: Distribution = CATEGORICAL
    vocabulary: bool = False

    def __post_init__(self) -> None:
        for what, found in (("metrics", self.metrics), ("losses", self.losses)):
            if not isinstance(found, tuple):
                raise ConfigError(f"task {self.name}: {what} must be a tuple, (...,). Got {in_words(found)}.")
        names = [metric.name for metric in self.metrics]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"task {self.name}: needs at least one metric, each with its own name. Got {names}.")
        if not self.losses:
            raise ConfigError(f"task {self.name}: needs the name of at least one loss that fits.")

    def occurrences(self, y: Tensor, size: int) -> Tensor | None:
        """How many of the targets (N, ...) are of each of `size` classes or labels; None if they are no classes."""
        if self.distribution is BERNOULLI:
            return (y > 0).sum(dim=0)
        if self.distribution is not CATEGORICAL or y.is_floating_point():
            return None
        y = y[y != self.loss_kwargs.get("ignore_index")].flatten()
        return None if len(y) and (y.min() < 0 or y.max() >= size) else torch.bincount(y, minlength=size)

    @property
    def primary(self) -> Metric:
        """The metric by which networks are compared and selected."""
        return self.metrics[0]


def read_target(target: Callable[[str, Any], Tensor], where: str, value: object) -> Tensor:
    """What the function `target` of a task makes of the target of one sample.

    Raises: DataError: it fails, or returns no tensor.
    """
    try:
        made = target(where, value)
    except ExperimentError:
        raise
    except Exception as error:  # of the user's own task
        text = f"{type(error).__name__}: {first_line(error)}{raised_at(error)}"
        raise DataError(f"{where}: the task's function `target` raised {text}. Got {in_words(value)}.") from error
    if not isinstance(made, Tensor):
        raise DataError(f"{where}: the task's function `target` must return a tensor. Got {in_words(made)}.")
    return made
