"""The block `lc`: how mode lc takes turns between learning and compressing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from experiment.config.schema.block import Block, Number, Whole

TIMES_FIRST = 5  # as long as the others the first L-step is, unless iterationsFirst says otherwise
DECAY, STEP_DECAY = 0.98, 0.1


class LearnCompress(Block):
    """Mode lc: how learning and compressing take turns."""

    steps: Annotated[Whole, Field(ge=1)] = 30
    """How often is compressed; the first time without having learnt, which is direct compression."""
    iterations: Annotated[Whole, Field(ge=1)] | None = None
    """Minibatches learnt before each compression; default: an epoch."""
    iterations_first: Annotated[Whole, Field(ge=1)] | None = None
    """Minibatches learnt before the second compression, as the first is direct; default: five times iterations."""
    mu_init: Annotated[Number, Field(gt=0)] = 1e-3
    """What draws the weights to the compressed ones, at first."""
    mu_multiplier: Annotated[Number, Field(ge=1)] = 1.1
    """What mu is multiplied by each time."""
    mu_cap: Annotated[Number, Field(gt=0)] = 1e4
    """From where on mu grows no more."""
    lr_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    """What the learning rate is multiplied by after each time of learning; default: 0.98; 0.1 with lrMilestones."""
    lr_milestones: list[Annotated[Whole, Field(ge=1)]] = []
    """The steps at which the learning rate is multiplied by lrDecay, in the place of each."""
    lr_end: Annotated[Number, Field(gt=0)] | None = None
    """Where the learning rate arrives, exponentially, each time that is learnt; it starts anew with the next."""

    @property
    def decay(self) -> float:
        """What the learning rate is multiplied by, each time or at the milestones."""
        if self.lr_end is not None:
            return 1.0
        return self.lr_decay if self.lr_decay is not None else STEP_DECAY if self.lr_milestones else DECAY

    def counts(self, per_epoch: int) -> tuple[int, int]:
        """Minibatches of the first time that is learnt, and of each of the others.

        Args:
            per_epoch: minibatches of an epoch.
        """
        iterations = self.iterations if self.iterations is not None else per_epoch
        return self.iterations_first if self.iterations_first is not None else TIMES_FIRST * iterations, iterations

    def total(self, per_epoch: int) -> int:
        """Minibatches in all."""
        first, others = self.counts(per_epoch)
        return 0 if self.steps == 1 else first + (self.steps - 2) * others
