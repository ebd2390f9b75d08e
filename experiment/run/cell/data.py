"""Datasets of an experiment, loaded once per process and cached."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from experiment.config import DatasetRef, Parameters, Training
from experiment.datasets.check_data import check_data
from experiment.datasets.image_data import Images, Splits, Transforms
from experiment.datasets.loading import load_source, make_images, make_splits
from experiment.datasets.raw_images import Source, some_of
from experiment.errors import plural
from experiment.files import MOST_LETTERS
from experiment.inputs import Inputs, first
from experiment.measure import example_input
from experiment.registry import is_import_path
from experiment.run.grid.data_facts import MOST_CLASSES, DataFacts
from experiment.run.grid.task_name import task_name
from experiment.run.machine import reading_processes
from experiment.tasks import find_task

MAX_KEPT = 4  # training and retraining may differ in their transforms; a sweep over more does not return to them
FEW = 1_000  # test inputs, on which the accuracy of one network is uncertain by points


def transforms_of(training: Training) -> Transforms:
    """The transforms of a training block as plain values."""
    groups = (training.transforms_train, training.transforms_test, training.transforms_final)
    return Transforms(*(tuple((c.type, dict(c.kwargs)) for c in group) for group in groups))


def traced_input(splits: Splits) -> Inputs:
    """A batch of one input, by which networks are traced and their FLOPs counted."""
    return example_input(splits.input_shape) if splits.example is None else first(splits.example)


class Data:
    """Training, validation and test data, cached from one cell to the next.

    Args:
        folder: of all datasets.
        device: of batches, and of datasets that fit into memory.
        readers: number of processes that read larger datasets; None for one per spare core.
        keep_sources: whether data before transforms are cached, too, for checks of a few images: corruptions are
            computed as images are read.
    """

    def __init__(self, folder: Path, device: str, *, readers: int | None = None, keep_sources: bool = False) -> None:
        self.folder, self.device = folder, torch.device(device)
        self._splits: dict[str, Splits] = {}
        self._tests: dict[str, Images] = {}
        self._sources: dict[str, Source] = {}
        self._readers = reading_processes() if readers is None else readers
        self._keep_sources = keep_sources

    def splits(self, p: Parameters, training: Training) -> Splits:
        """The parts of the dataset, with the transforms of a training or retraining block.

        Raises: DataError: the dataset is missing, damaged, or contradicts outputSize.
        """
        dataset, transforms = p.network.dataset, transforms_of(training)
        key = _key(dataset, transforms, p)
        if key not in self._splits:
            _make_room(self._splits)
            train, test = (self.source(p, dataset, part) for part in (True, False))
            self._splits[key] = make_splits(
                dataset.name, train, test, transforms,
                seed=p.seed, output_size=p.network.output_size, device=self.device, workers=self._readers,
                task=find_task(task_name(p)),
            )  # fmt: skip
        return self._splits[key]

    def tests(self, p: Parameters, training: Training | None = None) -> Iterator[Images]:
        """The images on which cells are tested, of each test set in order."""
        return (self.test(p, training, dataset) for dataset in p.test_sets)

    def test(self, p: Parameters, training: Training | None = None, dataset: DatasetRef | None = None) -> Images:
        """The images of one test set, by default of the first: `experiments.datasetTest`, else of the dataset."""
        training, dataset = training or p.training, dataset or p.test_sets[0]
        transforms = transforms_of(training)
        if not p.experiments.dataset_test:
            return self.splits(p, training).test
        key = _key(dataset, transforms, p)
        if key not in self._tests:
            _make_room(self._tests, len(p.test_sets))
            (self._tests[key],) = make_images(
                dataset.name, self.source(p, dataset, False), transforms=transforms,
                output_size=p.network.output_size, device=self.device, workers=self._readers,
                task=find_task(task_name(p)),
            )  # fmt: skip
        return self._tests[key]

    def facts(self, p: Parameters, training: Training) -> DataFacts:
        """The facts about the data that a report shows, with warnings.

        Raises: as `splits`; DataError also if the inputs cannot be trained on.
        """
        dataset, tests = p.network.dataset, p.test_sets
        splits, train_source = self.splits(p, training), self.source(p, dataset, True)
        place = train_source.place or self.folder / dataset.name
        tested, named = ", ".join(test.shown for test in tests), len(tests) > 1
        warnings: dict[str, None] = {}
        for dataset_test in tests:
            test, source = self.test(p, training, dataset_test), self.source(p, dataset_test, False)
            found = check_data(splits, test, p.seed, dataset.name, train_source, source, find_task(task_name(p)))
            for text in (*found, *_resolution(len(test), p)):
                warnings[f"{dataset_test.shown}: {text}" if named and "test" in text else text] = None
        return DataFacts(
            dataset=dataset.shown if tests == [dataset] else f"{dataset.shown}, tested on {tested}",
            root=str(place) if place.is_dir() else str(self.folder) if is_import_path(dataset.name) else "",
            training=len(splits.train),
            validation=len(splits.valid),
            test=len(self.test(p, training)),
            num_classes=p.network.output_size,
            classes=[name[:MOST_LETTERS] for name in train_source.classes[:MOST_CLASSES]],
            warnings=list(warnings),
        )

    def key(self, p: Parameters, training: Training) -> str:
        """A key of the data with these transforms."""
        datasets = p.network.dataset, *p.test_sets
        return "\n".join(_key(dataset, transforms_of(training), p) for dataset in datasets)

    def source(self, p: Parameters, dataset: DatasetRef, train: bool) -> Source:
        """One part of a dataset before any transform."""
        size = p.network.output_size
        key = json.dumps([dataset.model_dump(), train, size], sort_keys=True, default=str)
        if key in self._sources:
            return self._sources[key]
        source = load_source(dataset.name, dataset.settings, self.folder, train, size)
        if dataset.max_samples is not None:
            source = some_of(source, dataset.max_samples, dataset.name)
        if dataset.corruption is not None:
            part, lazily = "train" if train else "test", self._keep_sources
            from experiment.datasets.corruptions.apply import corrupted  # scipy.signal takes a second

            source = corrupted(source, dataset.corruption, dataset.severity, part, lazily=lazily)
        if self._keep_sources:
            _make_room(self._sources)
            self._sources[key] = source
        return source


def _key(dataset: DatasetRef, transforms: Transforms, p: Parameters) -> str:
    what = [dataset.model_dump(), repr(transforms), p.seed, p.network.output_size, task_name(p)]
    return json.dumps(what, sort_keys=True, default=str)


def _make_room(kept: dict[str, Any], needed: int = 0) -> None:
    while len(kept) >= max(MAX_KEPT, needed):
        kept.pop(next(iter(kept)))


def _resolution(tested: int, p: Parameters) -> Iterator[str]:
    """A warning if one network and few test inputs leave differences of a point or more to chance."""
    if p.experiments.num_nets == 1 and tested < FEW and find_task(task_name(p)).primary.name == "top1":
        half = 196 * math.sqrt(0.9 * 0.1 / tested)  # points
        yield (
            f"with {plural(tested, 'test input')} and one network, the 95 % interval of a top-1 of 90 % is "
            f"± {half:.1f} points: smaller differences may be chance"
        )
