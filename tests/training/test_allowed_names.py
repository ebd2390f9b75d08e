"""The torch-free lists agree with torch, and are torch-free."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from experiment.tasks import find_task
from experiment.training.allowed_names import LOSSES, OPTIMIZERS, REFUSED, SCHEDULERS
from experiment.training.factories import make_loss, make_optimizer
from experiment.training.schedule import Schedule
from experiment.training.settings import SchedulerSpec, TrainSettings

# Arguments in epochs and others, of the schedulers that need some.
ARGUMENTS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "CosineAnnealingLR": ({"T_max": 4}, {}),
    "CosineAnnealingWarmRestarts": ({"T_0": 2}, {}),
    "CyclicLR": ({"step_size_up": 2}, {"base_lr": 0.01, "max_lr": 0.1}),
    "ExponentialLR": ({}, {"gamma": 0.9}),
    "MultiStepLR": ({"milestones": [2, 3]}, {}),
    "OneCycleLR": ({"total_steps": 6}, {"max_lr": 0.1}),
    "PolyLR": ({"max_epoch": 6}, {}),
    "StepLR": ({"step_size": 2}, {}),
    "WarmupLR": ({"warmup_epoch": 2}, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_is_torchs_and_trains(name: str) -> None:
    assert name in vars(torch.optim)
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = make_optimizer([weight], name, {})
    (weight**2).sum().backward()
    optimizer.step()
    assert float((weight.detach() ** 2).sum()) < 6


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_is_torchs_or_ours_and_steps(name: str) -> None:
    assert name in vars(lr_scheduler) or name in ("WarmupLR", "PolyLR")
    in_epochs, others = ARGUMENTS.get(name, ({}, {}))
    settings = TrainSettings(
        num_epochs=6,
        batch_size=1,
        optimizer_kwargs={"lr": 0.1, "momentum": 0.9},
        schedulers=(SchedulerSpec(name, others, in_epochs),),
    )
    schedule = Schedule(settings, steps_per_epoch=3)
    rates = []
    for _ in range(6):
        for _ in range(3):
            rates.append(schedule.learning_rate)
            schedule.step()
        schedule.end_epoch(1.0)
    assert all(0 <= rate <= 0.1 + 1e-12 for rate in rates)
    assert name == "ReduceLROnPlateau" or len(set(rates)) > 1


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_torchs(name: str) -> None:
    logits, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    if name not in find_task("classification").losses:
        y = torch.eye(3)[y]
    assert torch.equal(make_loss(name, {})(logits, y), vars(nn)[name.removesuffix("WithAuxiliary")]()(logits, y))


def test_what_is_refused_exists_in_torch_and_has_a_reason() -> None:
    for name, reason in REFUSED.items():
        assert name in vars(torch.optim) or name in vars(lr_scheduler)
        assert name not in OPTIMIZERS + SCHEDULERS
        assert reason.startswith("it takes ") or len(reason) > 10


def test_lists_are_sorted_and_unique() -> None:
    for names in (OPTIMIZERS, SCHEDULERS, LOSSES):
        assert sorted(set(names)) == sorted(names)


def test_lists_need_no_torch() -> None:
    code = "import sys, experiment.training.allowed_names; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
