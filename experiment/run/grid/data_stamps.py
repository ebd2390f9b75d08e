"""Stamps of an experiment's data: hashes of the content that results were computed on.

The stamp of the training data is part of the keys of reference networks, and so of all cells; the stamp of the test
data is part of the keys of cells. Stamps are computed from the dataset's files (`experiment.datasets.file_stamp`).
Without files, a plan uses the stamps of the last run, which are stored in `data.json` with the results. A run reads the
data if there is no other way: the user's own datasets, and those not downloaded yet. Only then is torch imported.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiment.config import DatasetRef
from experiment.datasets.file_stamp import CONSTANT, stamp_of_part
from experiment.errors import ConfigError, DataError
from experiment.escaping import json_text
from experiment.registry import is_import_path

UNKNOWN = "unknown"  # the stamp of data that were never read: no result has it


@dataclass
class Stamps:
    """The stamps of one experiment's datasets, each computed once.

    Args:
        datasets: the folder of datasets.
        remembered: stamps of the last run.
        reading: whether datasets may be loaded.
    """

    datasets: Path
    remembered: Mapping[str, str] = field(default_factory=dict)
    reading: bool = False
    _found: dict[str, tuple[DatasetRef, bool, str]] = field(default_factory=dict)

    def of(self, dataset: DatasetRef, train: bool, output_size: int) -> str:
        """The stamp of one part of a dataset; CONSTANT if it cannot change, UNKNOWN if it cannot be determined."""
        key = json_text([dataset.name, dataset.settings, "train" if train else "test"], sort_keys=True)
        if key not in self._found:
            self._found[key] = dataset, train, self._find(key, dataset, train, output_size)
        return self._found[key][2]

    def known(self) -> dict[str, str]:
        """The stamps to store."""
        return {key: stamp for key, (*_, stamp) in self._found.items() if stamp not in (CONSTANT, UNKNOWN)}

    def changes(self) -> Iterator[str]:
        """Errors about data that changed since the cells were planned; to be called after loading the data.

        The user's own datasets are not read again.
        """
        for dataset, train, stamp in self._found.values():
            now = stamp_of_part(dataset.name, dataset.settings, self.datasets, train)
            if stamp == UNKNOWN or now not in (None, stamp):
                part = f"its {'training' if train else 'test'} data"
                yield f"dataset {dataset.name}: {part} changed while cells were planned. Run the command again."

    def _find(self, key: str, dataset: DatasetRef, train: bool, output_size: int) -> str:
        name, settings = dataset.name, dataset.settings
        stamp = stamp_of_part(name, settings, self.datasets, train)
        if stamp is None and self.reading and (is_import_path(name) or key not in self.remembered):
            from experiment.datasets.content_stamp import stamp_by_reading  # imports torch

            try:
                stamp = stamp_by_reading(name, settings, self.datasets, train, output_size)
            except (ConfigError, DataError):  # reported with its place when the run is checked
                stamp = None
        return self.remembered.get(key, UNKNOWN) if stamp is None else stamp
