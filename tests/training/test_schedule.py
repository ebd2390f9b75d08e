"""The learning rate at every step against the schedules written out."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from experiment.errors import ConfigError
from experiment.training.factories import make_optimizer
from experiment.training.schedule import Schedule
from experiment.training.settings import SchedulerSpec, TrainSettings

STEPS = 7
WARMUP = SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 3})
MULTI_STEP = SchedulerSpec("MultiStepLR", {"gamma": 0.1}, {"milestones": [5, 8]})


def settings_of(*schedulers: SchedulerSpec, epochs: int = 10, start: int = 0, momentum: float = 0.9) -> TrainSettings:
    return TrainSettings(
        num_epochs=epochs,
        start_epoch=start,
        batch_size=1,
        optimizer_kwargs={"lr": 0.2, "momentum": momentum},
        schedulers=schedulers,
    )


def rates_of(settings: TrainSettings) -> list[float]:
    schedule = Schedule(settings, STEPS)
    rates = []
    for _ in range((settings.num_epochs - settings.start_epoch) * STEPS):
        rates.append(schedule.learning_rate)
        schedule.step()
    return rates


def warmup(e: float) -> float:
    return min(e / 3, 1.0)


def multi_step(e: float) -> float:
    return 0.1 ** ((e >= 5) + (e >= 8))


def cosine(e: float) -> float:
    return (1 + math.cos(math.pi * min(e, 10) / 10)) / 2


CASES: list[tuple[tuple[SchedulerSpec, ...], Callable[[float], float]]] = [
    ((), lambda e: 1.0),
    ((WARMUP,), warmup),
    ((MULTI_STEP, WARMUP), lambda e: multi_step(e) * warmup(e)),
    ((WARMUP, MULTI_STEP), lambda e: multi_step(e) * warmup(e)),  # order does not matter
    ((SchedulerSpec("CosineAnnealingLR", {}, {"T_max": 10}), WARMUP), lambda e: cosine(e) * warmup(e)),
    ((SchedulerSpec("PolyLR", {}, {"max_epoch": 10}),), lambda e: (1 - e / 10) ** 0.9),
    ((SchedulerSpec("PolyLR", {"power": 2}, {"max_epoch": 6}),), lambda e: max(0.0, 1 - e / 6) ** 2),
    (
        (SchedulerSpec("StepLR", {"gamma": 0.5}, {"step_size": 4}), MULTI_STEP),
        lambda e: 0.5 ** (e // 4) * multi_step(e),
    ),
    ((SchedulerSpec("ExponentialLR", {"gamma": 0.99}),), lambda e: 0.99 ** (e * STEPS)),  # kwargs count steps
    ((SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 0}),), lambda e: 1.0),
    ((SchedulerSpec("MultiStepLR", {"gamma": 0.1}, {"milestones": [0.5]}),), lambda e: 0.1 if e * STEPS >= 4 else 1.0),
]


@pytest.mark.parametrize(("schedulers", "expected"), CASES)
def test_every_step(schedulers: tuple[SchedulerSpec, ...], expected: Callable[[float], float]) -> None:
    rates = rates_of(settings_of(*schedulers))
    assert rates == pytest.approx([0.2 * expected(i / STEPS) for i in range(10 * STEPS)], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("schedulers", "expected"), CASES)
@pytest.mark.parametrize("start", [1, 5, 9])
def test_a_later_start_enters_the_same_schedule(
    schedulers: tuple[SchedulerSpec, ...], expected: Callable[[float], float], start: int
) -> None:
    assert rates_of(settings_of(*schedulers, start=start)) == rates_of(settings_of(*schedulers))[start * STEPS :]


def test_one_cycle_moves_the_momentum_too() -> None:
    """As torch's scheduler does on an optimizer that is trained."""
    settings = settings_of(SchedulerSpec("OneCycleLR", {"max_lr": 0.5}, {"total_steps": 10}))
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    torchs = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=0.5, total_steps=10 * STEPS)
    trained = make_optimizer([nn.Parameter(torch.zeros(1))], "SGD", settings.optimizer_kwargs)
    schedule = Schedule(settings, STEPS)
    for _ in range(10 * STEPS - 1):
        schedule.write(trained)
        for key in ("lr", "momentum"):
            assert trained.param_groups[0][key] == pytest.approx(reference.param_groups[0][key])
        reference.step()
        torchs.step()
        schedule.step()


def test_one_cycle_that_ends_too_early_is_an_error() -> None:
    schedule = Schedule(settings_of(SchedulerSpec("OneCycleLR", {"max_lr": 0.5}, {"total_steps": 1})), STEPS)
    for _ in range(STEPS):
        schedule.step()
    with pytest.raises(ConfigError, match=r"lrSchedulers\[0\]: OneCycleLR: Tried to step"):
        schedule.step()


def test_plateau_follows_the_validation_loss() -> None:
    plateau = SchedulerSpec("ReduceLROnPlateau", {"factor": 0.5}, {"patience": 1})
    schedule = Schedule(settings_of(plateau, WARMUP), STEPS, valid_losses=[1.0, 0.5])
    rates = []
    for loss in (0.6, 0.7, 0.4):
        for _ in range(STEPS):
            schedule.step()
        schedule.end_epoch(loss)
        rates.append(schedule.learning_rate)
    assert rates == pytest.approx([0.2, 0.1, 0.1])
    resumed = Schedule(settings_of(plateau, WARMUP), STEPS, valid_losses=[1.0, 0.5, 0.6, 0.7])
    assert resumed.learning_rate == pytest.approx(0.1)


def test_plateau_needs_validation_and_a_start_at_zero() -> None:
    plateau = SchedulerSpec("ReduceLROnPlateau")
    with pytest.raises(ConfigError, match="needs a validation part"):
        Schedule(settings_of(plateau), STEPS).end_epoch(None)
    with pytest.raises(ConfigError, match="depends on the epochs before startEpoch \\(3\\)"):
        Schedule(settings_of(plateau, start=3), STEPS)


def test_without_schedulers_the_optimizer_keeps_its_rate() -> None:
    trained = make_optimizer([nn.Parameter(torch.zeros(1))], "Adam", {"lr": 0.03})
    Schedule(TrainSettings(num_epochs=1, batch_size=1, optimizer="Adam", optimizer_kwargs={"lr": 0.03}), 3).write(
        trained
    )
    assert trained.param_groups[0]["lr"] == 0.03
