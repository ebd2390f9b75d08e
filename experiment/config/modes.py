"""What a mode means: where compression starts, which weights are retrained, and by which epochs of the schedule."""

from __future__ import annotations

import math
from typing import Literal

from experiment.config.schema.parameter_file import Experiments, Parameters
from experiment.config.schema.training import Retraining

Rewinding = Literal["weights", "random", "none"]
TRAINED_ON = 0.9  # of the training part; the rest is for validation
REWIND = "-rewind"  # what torchprune's modes end with that rewind the weights


def is_cascade(experiments: Experiments) -> bool:
    """Whether every keep ratio starts from the one before, not from the reference network."""
    return base_mode(experiments) == "cascade"


def base_mode(experiments: Experiments) -> str:
    """The mode without a word about weights: train, retrain or cascade."""
    return experiments.mode.removesuffix(REWIND)


def rewinding(experiments: Experiments) -> Rewinding:
    """Which weights are retrained: `rewind` where it is given, else what the mode says.

    weights: those of the reference network at the start of epoch retraining.startEpoch; random: fresh ones;
    none: those that compression left.
    """
    if experiments.rewind is not None:
        return experiments.rewind
    return "weights" if experiments.mode.endswith(REWIND) else "none"


def takes_tickets(experiments: Experiments) -> bool:
    """Whether structures come from rewound networks that are computed beside it: a cascade with random weights.

    A control differs in its weights alone. Had every step removed what the random network before it could spare, the
    structure would be made for that network.
    Source: Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635
    """
    return is_cascade(experiments) and rewinding(experiments) == "random"


def with_rewinding(p: Parameters, which: Rewinding) -> Parameters:
    """The same parameters with other weights to retrain."""
    return p.model_copy(update={"experiments": p.experiments.model_copy(update={"rewind": which})})


def retraining(p: Parameters) -> Retraining:
    """The retraining that is run: random weights, which have seen no epoch, get the whole schedule."""
    if rewinding(p.experiments) == "random":
        return p.retraining.model_copy(update={"start_epoch": 0})
    return p.retraining


def epochs_of(p: Parameters, num_train: int | None = None) -> int:
    """Epochs that every cell is retrained for; in mode lc those that it learns, rounded up, as far as that is known.

    Args:
        num_train: images of the dataset's training part; where nobody knows, every L-step counts as an epoch.
    """
    if p.experiments.mode == "lc":
        if num_train is None:
            return p.lc.total(1) if p.lc.iterations is None and p.lc.iterations_first is None else p.lc.steps - 1
        per_epoch = max(1, math.ceil(TRAINED_ON * num_train / p.retraining.batch_size))
        return math.ceil(p.lc.total(per_epoch) / per_epoch)
    block = retraining(p)
    return max(0, block.num_epochs - block.start_epoch)
