"""The metrics of results: names, directions, units, and how they are written in titles and tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiment.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

    from experiment.tasks.task import Metric

BEFORE = "_before_retraining"  # ending of a column
DEFAULTS = {"primary": "top1", "better": "higher", "unit": "fraction"}  # of results without these columns
OF_CLASSES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}
AGREEMENT = {  # with the reference network: column -> title, unit; lower is better
    "flips": ("changed test predictions", "fraction"),
    "kl": ("KL divergence from the reference", "value"),
    "worst_class_drop": ("loss of accuracy in the worst class", "fraction"),
}


@dataclass(frozen=True)
class ReportedMetric:
    """A metric in a table of results; by default top-1 accuracy.

    Attributes:
        name: its column.
        better: `higher` or `lower`.
        unit: `fraction`, shown in percent and compared in percentage points, or `value`, shown as it is and compared
            in percent of the reference network's figure.
    """

    name: str = "top1"
    better: str = "higher"
    unit: str = "fraction"

    @property
    def falls(self) -> bool:
        """Whether worse networks have lower figures."""
        return self.better == "higher"

    @property
    def scale(self) -> float:
        """The factor of shown figures: 100 for percent, else 1."""
        return 100.0 if self.unit == "fraction" else 1.0

    @property
    def step(self) -> str:
        """The unit of differences."""
        return "points" if self.unit == "fraction" else "%"

    @property
    def before(self) -> str:
        """The column of the figure before retraining."""
        return self.name + BEFORE

    @property
    def reference(self) -> str:
        """The column of the reference network's figure."""
        return f"{self.name}_reference"

    @property
    def title(self) -> str:
        """The name within a sentence; metrics of the user's own tasks are named as their columns."""
        if self.name in AGREEMENT:
            return AGREEMENT[self.name][0]
        known = None if self.name in OF_CLASSES else registered(self.name)
        return known.title if known else OF_CLASSES.get(self.name, self.name.replace("_", " "))

    @property
    def worsening(self) -> str:
        """What worse figures are: a loss or an increase."""
        return "loss" if self.falls else "increase"

    @property
    def loss_title(self) -> str:
        """`loss of mean IoU`, `increase of perplexity`."""
        return f"{self.worsening} of {self.title}"

    def limit(self, delta: float) -> str:
        """An allowed loss in words: `loss ≤ 0.5 points`."""
        return f"{self.worsening} ≤ {self.steps(delta)}"

    def steps(self, *deltas: float) -> str:
        """Differences in words: `0.5 points`, `1 point`, `5, 10 and 20 %`."""
        numbers = [f"{100 * delta:g}" for delta in deltas]
        listed = " and ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))
        return f"{listed} {self.step.removesuffix('s') if numbers == ['1'] else self.step}"

    def difference(self, reference: Any, value: Any) -> Any:
        """`value` minus `reference`: of fractions, else as a share of the reference."""
        return value - reference if self.unit == "fraction" else (value - reference) / abs(reference)

    def loss(self, reference: Any, value: Any) -> Any:
        """How much worse `value` is than `reference`, as `difference`; negative if it is better."""
        return -self.difference(reference, value) if self.falls else self.difference(reference, value)


def by_metric(results: DataFrame) -> Iterator[tuple[ReportedMetric, DataFrame]]:
    """The rows of every primary metric, in order; of an empty table, all rows and top-1 accuracy.

    Args:
        results: as returned by `tidy`.
    """
    names = results["primary"].unique()
    if not len(names):
        yield ReportedMetric(), results
    for name in names:
        rows = results[results["primary"] == name] if len(names) > 1 else results
        yield ReportedMetric(*(str(rows[column].iloc[0]) for column in DEFAULTS)), rows


def primary_metric(results: DataFrame) -> ReportedMetric:
    """The primary metric that all rows share.

    Raises: ConfigError: there are several.
    """
    found = [metric for metric, _ in by_metric(results)]
    if len(found) > 1:
        names = ", ".join(metric.name for metric in found)
        raise ConfigError(f"results: several primary metrics ({names}). Select the rows of one of them.")
    return found[0]


def metric_named(name: str, primary: ReportedMetric) -> ReportedMetric:
    """The metric of a column: the primary one, also before retraining, another one, or the loss."""
    if name in (primary.name, primary.before):
        return ReportedMetric(name, primary.better, primary.unit)
    if name in AGREEMENT:
        return ReportedMetric(name, "lower", AGREEMENT[name][1])
    known = None if name in OF_CLASSES or name == "loss" else registered(name)
    default = ("higher", "fraction") if name in OF_CLASSES else ("lower", "value")
    return ReportedMetric(name, *((known.better, known.unit) if known else default))


def registered(name: str) -> Metric | None:
    """The metric of this name of a task of the registry."""
    from experiment.tasks import TASKS, find_task  # imports torch: not for reports about classification

    metrics = (metric for task in TASKS for metric in find_task(task).metrics)
    return next((metric for metric in metrics if metric.name == name), None)
