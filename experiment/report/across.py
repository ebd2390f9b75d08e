"""Results of several experiments together: which may be compared, and why others may not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiment.errors import ConfigError
from experiment.report.comparisons import Ranking, rankings, read_samples
from experiment.report.primary_metric import primary_metric
from experiment.report.results_folder import Source
from experiment.report.results_table import REFERENCE, compressed, reference_rows, variants_of

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = {"network": "network", "dataset": "dataset", "dataset_test": "test set", "primary": "metric"}
MOST_SETTINGS = 4  # named in a reason


@dataclass(frozen=True)
class Part:
    """One variant of an experiment: the unit of what can be compared.

    Attributes:
        rows: its rows on the first test set, reference networks included.
    """

    source: Source
    variant: str
    rows: DataFrame

    @property
    def name(self) -> str:
        return f"{self.source.name} {self.variant}".strip()

    @property
    def basis(self) -> tuple[str, ...]:
        """What has to agree: network, data, metric, and the first reference network, whose key names its training."""
        own = reference_rows(self.rows).sort_values("net")
        first = own.iloc[0] if len(own) else self.rows.iloc[0]
        return (*(str(first[column]) for column in COLUMNS), str(first["cell"]) if len(own) else self.name)


def parts_of(sources: Sequence[Source]) -> list[Part]:
    """The variants of all experiments that have a finished compressed network."""
    found = []
    for source in sources:
        for variant in variants_of(source.results):
            rows = source.results[source.results["variant"] == variant]
            if len(compressed(rows)):
                found.append(Part(source, variant, rows))
    return found


def comparable(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts in groups that may be compared, in order."""
    groups: dict[tuple[str, ...], list[Part]] = defaultdict(list)
    for part in parts:
        groups[part.basis].append(part)
    return list(groups.values())


def why_not(first: Part, second: Part) -> str:
    """Why two parts may not be compared; empty if they may.

    Example:
        >>> why_not(one, other)
        'reference networks differ: training.numEpochs 12 and 16'
    """
    one, two = first.basis, second.basis
    for (_, title), a, b in zip(COLUMNS.items(), one, two, strict=False):
        if a != b:
            return f"{title} differs: {a} and {b}"
    if one == two:
        return ""
    if one[-1] == first.name or two[-1] == second.name:
        return "a reference network is not finished"
    settings = [part.source.settings_of(part.variant).model_dump(by_alias=True) for part in (first, second)]
    changed = list(_changes(settings[0], settings[1]))
    return f"reference networks differ: {', '.join(changed[:MOST_SETTINGS]) or 'their data or code changed'}"


def together(group: Sequence[Part]) -> DataFrame:
    """The rows of parts that may be compared, as one experiment; labels name their experiment where two have the same.

    Raises: ConfigError: they may not be compared.
    """
    import pandas as pd

    for part in group[1:]:
        if reason := why_not(group[0], part):
            raise ConfigError(f"{group[0].name} and {part.name}: cannot be compared, {reason}.")
    labels = [label for part in group for label in dict.fromkeys(compressed(part.rows)["label"])]
    frames = []
    for part in group:
        own = part.rows["label"].map(lambda label, part=part: _label(label, part.name, labels))
        frames.append(part.rows.assign(label=own, variant=""))
    rows = pd.concat(frames, ignore_index=True)
    references = (rows["method"] == REFERENCE) & rows.duplicated(["method", "net"])
    rows = rows[~references].reset_index(drop=True)
    primary_metric(rows)  # raises if there are several
    return rows


def order_of(group: Sequence[Part], rows: DataFrame) -> list[Ranking]:
    """The comparison of all methods of `together` at the keep ratios that they share."""
    samples: dict[str, Any] = {}
    for part in group:
        samples |= read_samples(part.source.folder, list(part.rows.loc[part.rows["status"] == "done", "cell"]))
    return list(rankings(rows, samples))


def _label(label: str, name: str, labels: Sequence[str]) -> str:
    return f"{label} ({name})" if labels.count(label) > 1 and label != REFERENCE else label


def _changes(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`training.numEpochs 12 and 16`: the settings of reference networks that differ."""
    for key in ("network", "training", "seed") if not prefix else dict.fromkeys([*first, *second]):
        one, two = first.get(key), second.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            yield from _changes(one, two, f"{prefix}{key}.")
        elif one != two:
            yield f"{prefix}{key} {one} and {two}"
