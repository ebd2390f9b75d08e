"""The primary metric of every test sample: what paired comparisons of networks need beside the figure of each."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from experiment.inputs import Inputs
from experiment.tasks.task import Metric
from experiment.training.factories import Loss


class SampleFigures:
    """Collects a value per sample, batch by batch, whose mean is the figure of the network (an `Observer`).

        samples = SampleFigures(find_task("classification").primary)
        evaluate(network, test, device="cpu", observers=[samples])
        samples.values()         # array([1., 1., 0., ...]): whether each image is classified correctly

    For accuracy the values are 0 and 1. In general they are the pseudo-values of the jackknife, n f - (n - 1) f_i,
    where f_i is the figure of all n samples but i; their mean differs from f by the jackknife's estimate of bias.

    Source: Miller 1974, "The jackknife: a review", https://doi.org/10.1093/biomet/61.1.1
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self.restart()

    def restart(self) -> None:
        """Forget the batches so far."""
        self._sums: list[Tensor] = []

    def observe(self, start: int, x: Inputs, outputs: Tensor, y: Tensor, criterion: Loss) -> None:
        """Score every sample of a batch alone."""
        if not self._metric.joined:  # else leaving each out would take time in the square of their number
            self._sums.append(self._metric.of_each(outputs, y))

    def values(self) -> npt.NDArray[np.generic] | None:
        """One value per sample, bool if all are 0 or 1, else float32; None if the figure is not made of sums."""
        sums = torch.cat(self._sums).cpu() if self._sums else torch.empty(0)
        if (n := len(sums)) < 2:
            return None
        total = sums.sum(dim=0)
        whole = self._metric.figure(total)
        different, places = torch.unique(sums, dim=0, return_inverse=True)  # two rows for accuracy
        figures = np.array([self._metric.figure(total - row) for row in different])
        without: npt.NDArray[np.float64] = figures[places.numpy()]
        if not np.isfinite([whole, *without]).all():
            return None
        values = n * whole - (n - 1) * without
        near = values.round()
        binary = bool(((near == 0) | (near == 1)).all() and np.abs(values - near).max() < 1e-6)
        return near.astype(bool) if binary else values.astype(np.float32)
