"""Checks of the settings of a training, without training."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from experiment.errors import ConfigError, first_line
from experiment.tasks import find_task
from experiment.training.allowed_names import LOSSES
from experiment.training.factories import make_loss, make_optimizer
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings


def check_training(settings: TrainSettings) -> list[str]:
    """The problems of the settings, as lines `setting: problem`.

    Optimizer and loss are used on dummy tensors, and the schedulers run through all epochs.
    """
    optimizer = _problems(_try_optimizer, settings)
    stand_in = replace(settings, optimizer="SGD", optimizer_kwargs={"lr": 1.0, "momentum": 0.9})
    schedule = _problems(_try_schedule, stand_in if optimizer else settings)
    problems = [*optimizer, *_problems(_try_loss, settings), *schedule]
    if settings.start_epoch > settings.num_epochs:
        problems.append(f"startEpoch: must be at most numEpochs, {settings.num_epochs}. Got {settings.start_epoch}.")
    return problems


def _problems(check: Callable[[TrainSettings], None], settings: TrainSettings) -> list[str]:
    try:
        check(settings)
    except ConfigError as error:
        return list(error.problems)
    return []


def _try_optimizer(settings: TrainSettings) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = make_optimizer([weight], settings.optimizer, settings.optimizer_kwargs)
    try:
        for _ in range(2):  # momentum is used from the second step on
            weight.grad = torch.ones(1)
            optimizer.step()
    except Exception as error:  # torch computes with the value and fails
        name, arguments = settings.optimizer, dict(settings.optimizer_kwargs)
        raise ConfigError(f"optimizerKwargs: {name} cannot compute with {arguments}: {first_line(error)}") from error


def _try_loss(settings: TrainSettings) -> None:
    task = find_task(settings.task)
    if settings.loss in LOSSES and settings.loss not in task.losses:
        raise ConfigError(
            f"loss: {settings.loss} does not fit the task {task.name}. Expected one of {', '.join(task.losses)}."
        )
    loss = make_loss(settings.loss, {**task.loss_kwargs, **settings.loss_kwargs})
    failure: Exception | None = None
    weight = settings.loss_kwargs.get("weight", settings.loss_kwargs.get("pos_weight"))
    outputs = torch.zeros(2, len(weight) if isinstance(weight, list | tuple) else 10)
    for targets in (torch.zeros(2, dtype=torch.long), torch.zeros_like(outputs)):  # of classes, or of values
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # targets of another shape
                loss(outputs, targets)
            return
        except Exception as error:  # torch computes with the value and fails
            failure = failure or error
    name, arguments = settings.loss, dict(settings.loss_kwargs)
    raise ConfigError(
        f"lossKwargs: {name} cannot compute with {arguments}: {first_line(failure or Exception())}"
    ) from failure


def _try_schedule(settings: TrainSettings) -> None:
    """Run all epochs, each as one step."""
    schedule = Schedule(settings, 1)
    for _ in range(settings.start_epoch, settings.num_epochs):
        schedule.step()
        schedule.end_epoch(0.0)
