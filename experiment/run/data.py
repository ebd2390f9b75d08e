"""The data of an experiment, as its parameters ask for them, loaded once a process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from experiment.clock import Clock
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
        clock: counts what loading takes.
    """

    def __init__(self, folder: Path, device: str, clock: Clock | None = None) -> None:
        self.folder, self.device = folder, torch.device(device)
        self._clock = clock or Clock()
        self._splits: dict[str, Splits] = {}
        self._tests: dict[str, Images] = {}

    def splits(self, p: Parameters, training: Training) -> Splits:
        """The dataset's parts with the transforms of `training` (or of the retraining block).

        Raises: DataError: it is missing, damaged, or contradicts outputSize.
        """
        dataset, transforms = p.network.dataset, transforms_of(training)
        key = _key(dataset, transforms, p)
        if key not in self._splits:
            _make_room(self._splits)
            with self._clock.part("data"):
                self._splits[key] = load_splits(
                    dataset.name, dataset.settings, transforms, data_dir=self.folder, seed=p.seed,
                    output_size=p.network.output_size, device=self.device,
                )  # fmt: skip
        return self._splits[key]

    def test(self, p: Parameters) -> Images:
        """The images that decide a cell's figures: `experiments.datasetTest`, else the dataset's own test part."""
        dataset, transforms = p.experiments.dataset_test, transforms_of(p.training)
        if dataset is None:
            return self.splits(p, p.training).test
        key = _key(dataset, transforms, p)
        if key not in self._tests:
            _make_room(self._tests)
            with self._clock.part("data"):
                self._tests[key] = load_test(
                    dataset.name, dataset.settings, transforms, data_dir=self.folder,
                    output_size=p.network.output_size, device=self.device,
                )  # fmt: skip
        return self._tests[key]


def _key(dataset: NamedSettings, transforms: Transforms, p: Parameters) -> str:
    what = [dataset.name, dataset.settings, repr(transforms), p.seed, p.network.output_size]
    return json.dumps(what, sort_keys=True, default=str)


def _make_room(kept: dict[str, Any]) -> None:
    while len(kept) >= MOST_KEPT:
        kept.pop(next(iter(kept)))
