"""Settings of an L-C optimization."""

from dataclasses import dataclass, replace

from experiment.training.schedule import Schedule
from experiment.training.settings import SchedulerSpec, TrainSettings


@dataclass(frozen=True)
class LCSettings:
    """Settings of an L-C optimization.

    Attributes:
        steps: number of C-steps; the first is direct compression, without an L-step.
        iterations, iterations_first: number of minibatches of an L-step, and of the first L-step.
        mu_init, mu_multiplier, mu_cap: mu is 0 in step 0 and mu_init in step 1; then it is multiplied in each step
            while it is at most mu_cap.
        lr_decay: factor on the learning rate after each L-step; with lr_milestones only at those steps.
        lr_end: final learning rate of each L-step, reached exponentially; None: constant in each L-step.
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
        """Number of minibatches of the L-step of step j."""
        return 0 if j == 0 else self.iterations_first if j == 1 else self.iterations

    def next_mu(self, mu: float) -> float:
        """The mu of the step after `mu`."""
        if mu == 0:
            return self.mu_init
        return mu * self.mu_multiplier if mu <= self.mu_cap else mu

    def training(self, settings: TrainSettings, j: int) -> TrainSettings:
        """The settings of the L-step of step j >= 1: its learning rate, and a scheduler that counts minibatches."""
        decays = sum(m <= j for m in self.lr_milestones) if self.lr_milestones else j - 1
        full = Schedule(replace(settings, schedulers=(), start_epoch=0), 1).learning_rate
        rate = full * self.lr_decay**decays
        schedulers: tuple[SchedulerSpec, ...] = ()
        if self.lr_end is not None:
            gamma = (self.lr_end / rate) ** (1 / self.count(j))
            schedulers = (SchedulerSpec("ExponentialLR", {"gamma": gamma}),)
        kwargs = {**settings.optimizer_kwargs, "lr": rate}
        return replace(settings, optimizer_kwargs=kwargs, schedulers=schedulers, start_epoch=0)
