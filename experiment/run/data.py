"""The data of an experiment, as its parameters ask for them, loaded once a process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiment.config import NamedSettings, Parameters, Training
from experiment.datasets.loading import Images, Splits, Transforms, load_splits, load_test

MOST_KEPT = 4  # training and retraining may differ in their transforms; more than that is a sweep, which moves on


def transforms_of(training: Training) -> Transforms:
    """The transforms of a training block as plain values."""
    groups = (training.transforms_train, training.transforms_test, training.transforms_final)
    return Transforms(*(tuple((c.type, dict(c.kwargs)) for c in group) for group in groups))


class Data:
    """Train, validation and test parts, kept from one cell to the next.

    Args:
        folder: where datasets lie.
        device: where small images are kept and all batches arrive.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, torch.device(device)
        self._kept: dict[str, Any] = {}

    def splits(self, p: Parameters, training: Training) -> Splits:
        """The dataset's parts with the transforms of `training` (or of the retraining block).

        Raises: DataError: it is missing, damaged, or contradicts outputSize.
        """
        transforms = transforms_of(training)
        dataset = p.network.dataset
        return self._once(
            ("splits", dataset, transforms, p),
            lambda: load_splits(
                dataset.name, dataset.settings, transforms, data_dir=self.folder, seed=p.seed,
                output_size=p.network.output_size, device=self.device,
            ),
        )  # fmt: skip

    def test(self, p: Parameters) -> Images:
        """The images that decide a cell's figures: `experiments.datasetTest`, else the dataset's own test part."""
        dataset = p.experiments.dataset_test
        if dataset is None:
            return self.splits(p, p.training).test
        transforms = transforms_of(p.training)
        return self._once(
            ("test", dataset, transforms, p),
            lambda: load_test(
                dataset.name, dataset.settings, transforms, data_dir=self.folder, seed=p.seed,
                output_size=p.network.output_size, device=self.device,
            ),
        )  # fmt: skip

    def _once(self, what: tuple[str, NamedSettings, Transforms, Parameters], load: Callable[[], Any]) -> Any:
        part, dataset, transforms, p = what
        key = json.dumps(
            [part, dataset.name, dataset.settings, repr(transforms), p.seed, p.network.output_size],
            sort_keys=True, default=str,
        )  # fmt: skip
        if key not in self._kept:
            while len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = load()
        return self._kept[key]
