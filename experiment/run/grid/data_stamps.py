"""The stamps of an experiment's data, by which results know what they were computed on. Torch only where data are read.

Training data enter the keys of reference networks, and so of all cells; test data enter those of what is tested on
them. Where a dataset's files are there, they tell (`experiment.datasets.file_stamp`). A plan without data takes the
stamps that the last run remembered in `data.json` beside its results: what was done then is done. A run reads what
cannot tell otherwise: datasets of the user's own, and those that are yet to be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiment.config import NamedSettings
from experiment.datasets.file_stamp import CONSTANT, stamp_of_part
from experiment.errors import ConfigError, DataError
from experiment.registry import is_import_path
from experiment.run.grid.keys import digest

UNKNOWN = "unknown"  # of data that nobody has seen: no result has it


@dataclass
class Stamps:
    """The stamps of the datasets of one experiment, each found once.

    Args:
        datasets: the folder that they lie in.
        remembered: what the last run knew.
        reading: whether datasets may be loaded for it.
    """

    datasets: Path
    remembered: Mapping[str, str] = field(default_factory=dict)
    reading: bool = False
    _found: dict[str, tuple[NamedSettings, bool, str]] = field(default_factory=dict)

    def of(self, dataset: NamedSettings, train: bool, output_size: int) -> str:
        """The stamp of one part of a dataset; CONSTANT where it needs none, UNKNOWN where there is no way to know."""
        key = digest([dataset.name, dataset.settings, train])
        if key not in self._found:
            self._found[key] = dataset, train, self._find(key, dataset, train, output_size)
        return self._found[key][2]

    def known(self) -> dict[str, str]:
        """What is worth remembering."""
        return {key: stamp for key, (*_, stamp) in self._found.items() if stamp not in (CONSTANT, UNKNOWN)}

    def changes(self) -> Iterator[str]:
        """What is wrong with computing now: data that changed since, or that could not be read when cells were planned.

        For the time after the data were loaded. Datasets of the user's own are not read again.
        """
        for dataset, train, stamp in self._found.values():
            now = stamp_of_part(dataset.name, dataset.settings, self.datasets, train)
            if stamp == UNKNOWN or now not in (None, stamp):
                part = f"its {'training' if train else 'test'} data"
                yield f"dataset {dataset.name}: {part} changed while cells were planned. Run the command again."

    def _find(self, key: str, dataset: NamedSettings, train: bool, output_size: int) -> str:
        name, settings = dataset.name, dataset.settings
        own = is_import_path(name)
        stamp = stamp_of_part(name, settings, self.datasets, train)
        if stamp is None and self.reading and (own or key not in self.remembered):
            from experiment.datasets.content_stamp import stamp_by_reading  # torch comes with it

            try:
                stamp = stamp_by_reading(name, settings, self.datasets, train, output_size)
            except (ConfigError, DataError):  # told, with its place, before anything is computed
                return self.remembered.get(key, UNKNOWN)
        return self.remembered.get(key, UNKNOWN) if stamp is None else stamp
