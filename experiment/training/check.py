"""What is wrong with a training block, found before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from experiment.errors import ConfigError
from experiment.training.factories import make_loss, make_optimizer
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings


def check_training(settings: TrainSettings) -> list[str]:
    """Problems of a training, one line each (`setting: what is wrong`); none where all is well.

    Optimizer, loss and schedulers are made for a dummy parameter, and the schedulers run through all epochs.
    """
    checks: list[Callable[[], object]] = [
        lambda: make_optimizer([nn.Parameter(torch.zeros(1))], settings.optimizer, settings.optimizer_kwargs),
        lambda: make_loss(settings.loss, settings.loss_kwargs),
    ]
    problems = [problem for check in checks for problem in _problems(check)]
    if not any(problem.startswith("optimizer") for problem in problems):  # or each scheduler would say it again
        problems += _problems(lambda: _run_schedule(settings))
    if settings.start_epoch > settings.num_epochs:
        problems.append(f"startEpoch: must be at most numEpochs, {settings.num_epochs}. Got {settings.start_epoch}.")
    return problems


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
