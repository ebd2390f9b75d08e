"""The learning rate of each step, from the schedulers of torch.

The schedulers act on a shadow optimizer without parameters to train. Before each step its learning rate, times the
warmup factor, is written to the real optimizer. So warmup multiplies all other schedulers, and any point of the
schedule is reached by stepping alone: at a later start epoch, and after an interruption.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, PolynomialLR, ReduceLROnPlateau

from experiment.errors import ConfigError, first_line
from experiment.training.allowed_names import SCHEDULERS
from experiment.training.factories import construct, find, make_optimizer
from experiment.training.settings import SchedulerSpec, TrainSettings

_S = TypeVar("_S")
_PER_EPOCH = "ReduceLROnPlateau"  # the only one that steps once per epoch, by the validation loss
_WRITTEN = ("lr", "momentum", "betas")  # what schedulers change


class Schedule:
    """The schedulers of a training.

    Args:
        settings: the schedule starts at `settings.start_epoch`.
        steps_per_epoch: converts arguments in epochs to steps.
        valid_losses: of the epochs since then that are already done.

    Raises: ConfigError: unknown scheduler, or wrong arguments.
    """

    def __init__(
        self, settings: TrainSettings, steps_per_epoch: int, valid_losses: Sequence[float | None] = ()
    ) -> None:
        self._optimizer = _shadow(settings.optimizer, settings.optimizer_kwargs)
        self._factors: list[Optimizer] = []
        self._steppers: dict[str, LRScheduler] = {}  # by setting and name
        self._plateaus: dict[str, ReduceLROnPlateau] = {}
        problems: list[str] = []
        for i, spec in enumerate(settings.schedulers):
            try:
                self._add(f"lrSchedulers[{i}]", spec, steps_per_epoch)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        if self._plateaus and settings.start_epoch > 0:
            raise ConfigError(
                f"lrSchedulers: {_PER_EPOCH} depends on the epochs before startEpoch ({settings.start_epoch}), which "
                "are not run. Set startEpoch: 0, or use another scheduler."
            )
        for optimizer in (self._optimizer, *self._factors):
            optimizer.step()  # otherwise torch warns that the schedulers step first
        self._advance(settings.start_epoch * steps_per_epoch)
        for loss in valid_losses:
            self._advance(steps_per_epoch)
            self.end_epoch(loss)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        rate = float(self._optimizer.param_groups[0]["lr"])
        for factor in self._factors:
            rate *= float(factor.param_groups[0]["lr"])
        return rate

    def write(self, optimizer: Optimizer) -> None:
        """Set the learning rate, and momentum if a scheduler changes it, for the next step."""
        if not self._steppers and not self._plateaus:
            return
        source, rate = self._optimizer.param_groups[0], self.learning_rate
        for group in optimizer.param_groups:
            group.update({key: source[key] for key in _WRITTEN if key in source})
            group["lr"] = rate

    def step(self) -> None:
        """Advance by one optimizer step.

        Raises: ConfigError: a scheduler with a fixed number of steps is at its end.
        """
        _each(self._steppers, lambda scheduler: scheduler.step())

    def end_epoch(self, valid_loss: float | None) -> None:
        """Advance the schedulers that step once per epoch."""
        if self._plateaus and valid_loss is None:
            raise ConfigError(
                f"lrSchedulers: {_PER_EPOCH} needs a validation part, and there is none. Use another scheduler."
            )
        _each(self._plateaus, lambda plateau: plateau.step(cast(float, valid_loss)))

    def _advance(self, steps: int) -> None:
        for _ in range(steps if self._steppers else 0):
            self.step()

    def _add(self, key: str, spec: SchedulerSpec, steps_per_epoch: int) -> None:
        factory = find(f"{key}.type", spec.type, SCHEDULERS, _SCHEDULERS)
        if both := sorted(set(spec.kwargs) & set(spec.step_kwargs)):
            raise ConfigError(f"{key}: {', '.join(both)} is set in both kwargs and stepKwargs. Remove one of them.")
        if spec.type == _PER_EPOCH:
            arguments = {**spec.kwargs, **spec.step_kwargs}  # it counts epochs itself
            if arguments.get("mode", "min") != "min":
                raise ConfigError(
                    f"{key}.kwargs.mode: {_PER_EPOCH} acts on the validation loss: must be min. "
                    f"Got {arguments['mode']!r}."
                )
            plateau = construct(key, spec.type, factory, [self._optimizer], arguments)
            self._plateaus[f"{key}: {spec.type}"] = cast(ReduceLROnPlateau, plateau)
            return
        optimizer = self._optimizer
        if spec.type == "WarmupLR":
            optimizer = _shadow("SGD", {"lr": 1.0})
            self._factors.append(optimizer)
        scaled = {
            name: _in_steps(f"{key}.stepKwargs.{name}", v, steps_per_epoch) for name, v in spec.step_kwargs.items()
        }
        scheduler = construct(key, spec.type, factory, [optimizer], {**spec.kwargs, **scaled})
        self._steppers[f"{key}: {spec.type}"] = cast(LRScheduler, scheduler)


def _each(schedulers: Mapping[str, _S], step: Callable[[_S], object]) -> None:
    """Step all schedulers."""
    problems = []
    for name, scheduler in schedulers.items():
        try:
            step(scheduler)
        except Exception as error:
            problems.append(f"{name}: {first_line(error)}")
    if problems:
        raise ConfigError(problems)


def _shadow(name: str, kwargs: Mapping[str, object]) -> Optimizer:
    """An optimizer of a dummy parameter."""
    return make_optimizer([nn.Parameter(torch.zeros(()))], name, kwargs)


def _in_steps(key: str, value: object, steps_per_epoch: int) -> object:
    """Epochs in steps, rounded, but at least one step if positive."""
    if isinstance(value, list | tuple):
        return [_in_steps(f"{key}[{i}]", v, steps_per_epoch) for i, v in enumerate(value)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key}: must be a number of epochs. Got {value!r}.")
    steps = round(value * steps_per_epoch)
    return max(steps, 1) if value > 0 else steps


def _warmup_lr(optimizer: Optimizer, warmup_epoch: float) -> LRScheduler:
    """A factor that grows linearly from 0 to 1 within `warmup_epoch`."""
    return LambdaLR(optimizer, lambda step: min(step / warmup_epoch, 1.0) if warmup_epoch > 0 else 1.0)


def _poly_lr(optimizer: Optimizer, max_epoch: int, power: float = 0.9) -> LRScheduler:
    """The factor (1 - e / max_epoch)^power."""
    return PolynomialLR(optimizer, total_iters=max_epoch, power=power)


_SCHEDULERS: Mapping[str, object] = {**vars(torch.optim.lr_scheduler), "WarmupLR": _warmup_lr, "PolyLR": _poly_lr}
