"""Names of experiments, modes, variants and quantities in titles, axes and captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from experiment.config import Parameters
from experiment.config.modes import base_mode, rewinding
from experiment.report.primary_metric import BEFORE, ReportedMetric
from experiment.report.results_table import compressed

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS = {
    "top1": "Top-1 test accuracy",
    "top5": "Top-5 test accuracy",
    "loss": "Test loss",
    "top1_before_retraining": "Top-1 test accuracy before retraining",
}
LONG = 38  # characters that fit along an axis
QUANTITIES = {
    "parameters": "parameters",
    "flops": "FLOPs",
    "flops_unmasked": "FLOPs of unmasked weights",
    "bytes": "bytes as stored",
}
MODES = {
    "train": ("training only", ""),
    "retrain": ("one-shot", "every keep ratio starts from the reference network"),
    "cascade": ("cascade", "every keep ratio starts from the retrained network of the previous one"),
    "gradual": ("gradual", "compressed in steps while retraining; every keep ratio starts from the reference network"),
    "lc": ("L-C", "learning and compression steps alternate; every keep ratio starts from the reference network"),
}
REWINDING = {
    "weights": ("with rewinding", "weights are reset to an earlier epoch before retraining"),
    "random": ("with random weights", "a control: the same structures, retrained from a new initialization"),
    "none": ("", ""),
}
VARIANTS = {
    "": "unchanged",
    "experiments.rewind=weights": "rewound weights",
    "experiments.rewind=random": "random weights",
    "experiments.rewind=none": "kept weights",
}


def mode_in_words(settings: Iterable[Parameters], *, explain: bool = False) -> str:
    """The mode, and the weights that are retrained, as far as all these settings agree on them."""
    experiments = [p.experiments for p in settings]
    found = ({MODES[base_mode(e)] for e in experiments}, {REWINDING[rewinding(e)] for e in experiments})
    agreed = [next(iter(each)) for each in found if len(each) == 1]
    return " ".join(f"{name} ({why})" if explain and why else name for name, why in agreed if name)


def variant_in_words(variant: str) -> str:
    """A short name of a variant: the last part of its key, and the value."""
    key, _, value = variant.partition("=")
    return VARIANTS.get(variant, f"{key.rpartition('.')[2]}={value}")


def metric_title(name: str) -> str:
    """The name of a column of a metric, also before retraining, as the title of a plot."""
    if name in METRICS:
        return METRICS[name]
    metric = name.removesuffix(BEFORE)
    return capitalized(ReportedMetric(metric).title) + (" before retraining" if metric != name else "")


def axis_label(title: str, metric: ReportedMetric) -> str:
    """A title with the unit."""
    unit = _unit(metric)
    return f"{title} ({unit})" if unit else title


def axis_title(title: str, metric: ReportedMetric) -> str:
    """A title with the unit and, where it is not the usual one, the direction."""
    lower = ["lower is better"] if metric.better == "lower" and metric.name != "loss" else []
    notes = joined(_unit(metric), *lower)
    text = f"{title} ({notes})" if notes else title
    return text if len(text) <= LONG else f"{title}\n({notes})"


def _unit(metric: ReportedMetric) -> str:
    """Of fractions `%`, of their differences `points`."""
    if metric.unit != "fraction":
        return ""
    return "points" if metric.name == "worst_class_drop" else "%"


def column_title(metric: ReportedMetric) -> str:
    """The header of a metric in tables: `Top-1 (%)`, `Mean IoU (%)`, `RMSE`."""
    return axis_label(metric_title(metric.name).replace(" test accuracy", ""), metric)


def validation_title(metric: ReportedMetric) -> str:
    """The primary metric on the validation part, with the unit."""
    own = "Top-1 validation accuracy" if metric.name == "top1" else f"Validation {metric.title}"
    return axis_label(own, metric)


def retraining_in_words(results: DataFrame) -> str:
    """The amount of retraining; of several variants, from the least to the most."""
    epochs = sorted(compressed(results).groupby(["variant", "label"])["epochs"].max().dropna())
    if not epochs:
        return ""
    least, most = (f"{n:.3g}" if n < 100 else f"{n:.0f}" for n in (epochs[0], epochs[-1]))  # parts of epochs in mode lc
    span = most if least == most else f"{least} to {most}"
    return f"{span} epoch{'' if most == '1' else 's'} of retraining" if epochs[-1] > 0 else "no retraining"


def network_on_dataset(results: DataFrame) -> str:
    """`resnet20 on CIFAR10`, and the test set if it is another one."""
    if results.empty:
        return "No results yet"
    first = results.iloc[0]
    title = f"{first['network']} on {first['dataset']}" if first["dataset"] else str(first["network"])
    tested = first["dataset_test"] if first["dataset_test"] != first["dataset"] else ""
    return f"{title}, tested on {tested}" if tested else title


def joined(*parts: str) -> str:
    """The parts that are not empty, separated by commas."""
    return ", ".join(filter(None, parts))


def and_joined(parts: Sequence[str]) -> str:
    """`WT`, `WT and FT`, `WT, FT and SVD`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def capitalized(text: str) -> str:
    """The text with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]
