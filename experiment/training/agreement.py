"""Agreement of a compressed network with its reference: equal accuracy can hide different behaviour.

Three figures over the test set, for tasks with discrete predictions:

    flips             the share of predictions that differ from those of the reference
    kl                mean KL(reference || compressed) of the predicted distributions, in nats
    worst_class_drop  the largest loss of accuracy in any class (any label), of those with at least 10 targets

Source: Dutta et al. 2024, https://arxiv.org/abs/2407.09141 (flips, divergence); Hooker et al. 2019,
https://arxiv.org/abs/1911.05248 (classes that compression harms most)
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from experiment.inputs import Inputs
from experiment.tasks.task import Task
from experiment.training.factories import Loss, counted_targets

FIGURES = ("flips", "kl", "worst_class_drop")
FEWEST = 10  # targets of a class: with fewer the accuracy in it is noise


class Agreement:
    """Compares outputs with those of the reference, batch by batch (an `Observer` of an evaluation).

        agreement = Agreement(find_task("classification"), lambda start, x: reference(x))
        evaluate(small, test, device="cpu", observers=[agreement])
        agreement.figures()      # {"flips": 0.021, "kl": 0.013, "worst_class_drop": 0.04}

    Args:
        reference: (number of the first sample, inputs of a batch) -> the reference's outputs (N, K, ...).
    """

    def __init__(self, task: Task, reference: Callable[[int, Inputs], Tensor]) -> None:
        self._task, self._reference = task, reference
        self.restart()

    def restart(self) -> None:
        """Forget the batches so far."""
        self._sums = torch.zeros(4, dtype=torch.float64)  # flips, predictions, divergence, distributions
        self._classes: Tensor | None = None  # (3, K): targets, right answers of the reference, right answers

    def observe(self, start: int, x: Inputs, outputs: Tensor, y: Tensor, criterion: Loss) -> None:
        """Compare a batch; its first sample is number `start`. Ignored targets do not count."""
        distribution = self._task.distribution
        if distribution.predictions is None:
            return
        reference = self._reference(start, x).to(outputs)
        before, now = distribution.predictions(reference), distribution.predictions(outputs)
        divergence = distribution.divergence(reference, outputs)
        counted = counted_targets(criterion, y)
        counted = torch.ones_like(now, dtype=torch.bool) if counted is None else counted
        divergence = divergence[counted] if counted.shape == divergence.shape else divergence.flatten()
        flips = (before != now)[counted]
        found = float(flips.sum()), len(flips), float(divergence.double().sum()), len(divergence)
        self._sums += torch.tensor(found, dtype=torch.float64)
        of_labels = now.shape == outputs.shape  # then there is one class per label
        classes = torch.arange(outputs.shape[1], device=y.device).expand_as(now) if of_labels else y
        rows = [torch.ones_like(flips), (before == y)[counted], (now == y)[counted]]
        per_class = partial(torch.bincount, classes[counted].flatten(), minlength=outputs.shape[1])
        counts = torch.stack([per_class(weights=row.flatten().double()).cpu() for row in rows])
        self._classes = counts if self._classes is None else self._classes + counts

    def figures(self) -> dict[str, float]:
        """The figures by column, those that are known; empty without discrete predictions."""
        if self._classes is None:
            return {}
        flips, predictions, divergence, distributions = self._sums.tolist()
        targets, before, now = self._classes.unbind()
        drops = ((before - now) / targets)[targets >= FEWEST]
        worst = [float(drops.max().clamp(min=0))] if len(drops) else []  # else unknown
        return dict(zip(FIGURES, (flips / predictions, divergence / distributions, *worst), strict=False))
