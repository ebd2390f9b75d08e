"""How learning and compressing take turns, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiment.training.schedule import Schedule
from experiment.training.settings import SchedulerSpec, TrainSettings


@dataclass(frozen=True)
class LCSettings:
    """One L-C optimization.

    Attributes:
        steps: C-steps; the first has no L-step before it: direct compression.
        iterations, iterations_first: minibatches of an L-step, and of the first one.
        mu_init, mu_multiplier, mu_cap: mu is 0 in the zeroth step, mu_init in the next, then multiplied while it is at
            most mu_cap.
        lr_decay: factor on the learning rate after every L-step; with lr_milestones only at those steps.
        lr_end: where the learning rate arrives in every L-step, exponentially; None: it is constant in each.
    """

    steps: int
    iterations: int
    iterations_first: int
    mu_init: float = 1e-3
    mu_multiplier: float = 1.1
    mu_cap: float = 1e4
    lr_decay: float = 1.0
    lr_milestones: tuple[int, ...] = ()
    lr_end: float | None = None

    def count(self, j: int) -> int:
        """Iterations of the L-step of step j."""
        return 0 if j == 0 else self.iterations_first if j == 1 else self.iterations

    def next_mu(self, mu: float) -> float:
        """The mu of the step after one with `mu`."""
        if mu == 0:
            return self.mu_init
        return mu * self.mu_multiplier if mu <= self.mu_cap else mu

    def training(self, settings: TrainSettings, j: int) -> TrainSettings:
        """The training of the L-step of step j >= 1: its learning rate, and a scheduler that counts iterations."""
        decays = sum(m <= j for m in self.lr_milestones) if self.lr_milestones else j - 1
        full = Schedule(replace(settings, schedulers=(), start_epoch=0), 1).learning_rate
        rate = full * self.lr_decay**decays
        schedulers: tuple[SchedulerSpec, ...] = ()
        if self.lr_end is not None:
            gamma = (self.lr_end / rate) ** (1 / self.count(j))
            schedulers = (SchedulerSpec("ExponentialLR", {"gamma": gamma}),)
        kwargs = {**settings.optimizer_kwargs, "lr": rate}
        return replace(settings, optimizer_kwargs=kwargs, schedulers=schedulers, start_epoch=0)
