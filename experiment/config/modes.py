"""The meaning of modes: where compression starts, and which weights are retrained for how many epochs."""

import math
from typing import Literal

from experiment.config.schema.parameter_file import Experiments, Parameters
from experiment.config.schema.training import Retraining

Rewinding = Literal["weights", "random", "none"]
TRAINED_ON = 0.9  # share of the training part; the rest is the validation part
REWIND = "-rewind"  # suffix of modes that rewind the weights


def is_cascade(experiments: Experiments) -> bool:
    """Whether every keep ratio starts from the previous one instead of from the reference network."""
    return base_mode(experiments) == "cascade"


def base_mode(experiments: Experiments) -> str:
    """The mode without its suffix: train, retrain, cascade, gradual or lc."""
    return experiments.mode.removesuffix(REWIND)


def rewinding(experiments: Experiments) -> Rewinding:
    """Which weights are retrained: `rewind` if it is set, else as the mode determines.

    weights: those of the reference network at the start of epoch retraining.startEpoch; random: new random weights;
    none: those left by the compression.
    """
    if experiments.rewind is not None:
        return experiments.rewind
    return "weights" if experiments.mode.endswith(REWIND) else "none"


def takes_tickets(experiments: Experiments) -> bool:
    """Whether structures come from a rewound cascade that is computed as well: a cascade with random weights.

    A random control must differ in its weights only, so each step takes the structure of the winning ticket at the same
    keep ratio instead of compressing the previous random network.
    Source: Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635
    """
    return is_cascade(experiments) and rewinding(experiments) == "random"


def with_rewinding(p: Parameters, which: Rewinding) -> Parameters:
    """The parameters with another choice of weights to retrain."""
    return p.model_copy(update={"experiments": p.experiments.model_copy(update={"rewind": which})})


def retraining(p: Parameters) -> Retraining:
    """The retraining that is run: random weights, which are untrained, get the whole schedule."""
    if rewinding(p.experiments) == "random":
        return p.retraining.model_copy(update={"start_epoch": 0})
    return p.retraining


def epochs_of(p: Parameters, num_train: int | None = None) -> int:
    """Epochs of retraining per cell; in mode lc the epochs of all L-steps, rounded up.

    Args:
        num_train: images in the dataset's training part. If unknown, every L-step counts as one epoch.
    """
    if p.experiments.mode == "lc":
        if num_train is None:
            return p.lc.total(1) if p.lc.iterations is None and p.lc.iterations_first is None else p.lc.steps - 1
        per_epoch = max(1, math.ceil(TRAINED_ON * num_train / p.retraining.batch_size))
        return math.ceil(p.lc.total(per_epoch) / per_epoch)
    block = retraining(p)
    return max(0, block.num_epochs - block.start_epoch)


def gradual_steps(p: Parameters, keep: float) -> list[tuple[int, float]]:
    """When mode gradual compresses, and to which size: keep + (1 - keep) (1 - i / n)^3 in step i = 1, ..., n.

    Args:
        keep: the keep ratio of the last step.
    Returns: (epoch at whose start the network is compressed, keep ratio).
    """
    start, every, end = p.retraining.start_epoch, p.gradual.every, p.gradual.end_epoch
    if end is None:
        end = (start + p.retraining.num_epochs) // 2
    n = max(1, (end - start) // every)
    return [(end - (n - i) * every, keep + (1 - keep) * (1 - i / n) ** 3) for i in range(1, n + 1)]
