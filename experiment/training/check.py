"""What is wrong with a training block, found before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from experiment.errors import ConfigError, first_line
from experiment.training.factories import make_loss, make_optimizer
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings


def check_training(settings: TrainSettings) -> list[str]:
    """Problems of a training, one line each (`setting: what is wrong`); none where all is well.

    Optimizer, loss and schedulers are made for a dummy parameter and used, and the schedulers run through all epochs.
    """
    problems = [problem for check in (_try_optimizer, _try_loss) for problem in _problems(partial(check, settings))]
    if not any(problem.startswith("optimizer") for problem in problems):  # or each scheduler would say it again
        problems += _problems(partial(_run_schedule, settings))
    if settings.start_epoch > settings.num_epochs:
        problems.append(f"startEpoch: must be at most numEpochs, {settings.num_epochs}. Got {settings.start_epoch}.")
    return problems


def _try_optimizer(settings: TrainSettings) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = make_optimizer([weight], settings.optimizer, settings.optimizer_kwargs)
    for _ in range(2):  # momentum acts from the second step on
        weight.grad = torch.ones(1)
        try:
            optimizer.step()
        except Exception as error:  # a value with which it cannot compute
            name, arguments = settings.optimizer, dict(settings.optimizer_kwargs)
            raise ConfigError(
                f"optimizerKwargs: {name} cannot compute with {arguments}: {first_line(error)}"
            ) from error


def _try_loss(settings: TrainSettings) -> None:
    loss = make_loss(settings.loss, settings.loss_kwargs)
    weight = settings.loss_kwargs.get("weight")
    outputs = torch.zeros(2, len(weight) if isinstance(weight, list | tuple) else 10)
    try:
        loss(outputs, torch.zeros(2, dtype=torch.long))
    except Exception as error:  # a value with which it cannot compute
        arguments = dict(settings.loss_kwargs)
        raise ConfigError(
            f"lossKwargs: {settings.loss} cannot compute with {arguments}: {first_line(error)}"
        ) from error


def _run_schedule(settings: TrainSettings) -> None:
    """Every epoch as one step."""
    schedule = Schedule(settings, 1)
    for _ in range(settings.start_epoch, settings.num_epochs):
        schedule.step()
        schedule.end_epoch(0.0)


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return list(error.problems)
    return []
