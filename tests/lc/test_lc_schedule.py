"""How many iterations, which mu and which learning rate each step has."""

import dataclasses
import itertools

import pytest

from experiment.lc.schedule import LCSettings
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings

SETTINGS = LCSettings(steps=6, iterations=10, iterations_first=50)
TRAINING = TrainSettings(num_epochs=9, start_epoch=3, batch_size=4, optimizer_kwargs={"lr": 0.2, "momentum": 0.9})


def rates(settings: LCSettings, step: int) -> list[float]:
    """The learning rate at every iteration of a step."""
    schedule, found = Schedule(settings.training(TRAINING, step), 1), []
    for _ in range(settings.count(step)):
        found.append(schedule.learning_rate)
        schedule.step()
    return [*found, schedule.learning_rate]


def test_iterations() -> None:
    assert [SETTINGS.count(j) for j in range(4)] == [0, 50, 10, 10]


def test_mu_grows_until_it_is_over_the_cap() -> None:
    settings = dataclasses.replace(SETTINGS, mu_init=1.0, mu_multiplier=3.0, mu_cap=10.0)
    mus = [0.0]
    for _ in range(6):
        mus.append(settings.next_mu(mus[-1]))
    assert mus == [0.0, 1.0, 3.0, 9.0, 27.0, 27.0, 27.0]


def test_decay_after_every_step() -> None:
    settings = dataclasses.replace(SETTINGS, lr_decay=0.5)
    assert [rates(settings, j)[0] for j in (1, 2, 4)] == pytest.approx([0.2, 0.1, 0.025])
    assert len(set(rates(settings, 2))) == 1


def test_decay_at_milestones() -> None:
    settings = dataclasses.replace(SETTINGS, lr_decay=0.1, lr_milestones=(2, 4))
    assert [rates(settings, j)[0] for j in range(1, 6)] == pytest.approx([0.2, 0.02, 0.02, 0.002, 0.002])


def test_every_step_ends_at_lr_end() -> None:
    settings = dataclasses.replace(SETTINGS, lr_end=0.002)
    for j in (1, 2, 5):
        found = rates(settings, j)
        assert found[0] == pytest.approx(0.2)
        assert found[-1] == pytest.approx(0.002)
        ratios = [b / a for a, b in itertools.pairwise(found)]
        assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_the_optimizer_keeps_what_else_it_was_given() -> None:
    assert SETTINGS.training(TRAINING, 1).optimizer_kwargs == {"lr": 0.2, "momentum": 0.9}
    assert SETTINGS.training(
        dataclasses.replace(TRAINING, optimizer="Adam", optimizer_kwargs={}), 1
    ).optimizer_kwargs == {"lr": 0.001}
