"""The variants of an experiment in one picture: for what a single setting changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from experiment.errors import ConfigError
from experiment.report.mean_and_spread import Band, Quantity, compressed, labels_of
from experiment.report.plots.label_styles import Naming
from experiment.report.plots.tradeoff import Metric, Scale, plot_tradeoff
from experiment.report.results_folder import REFERENCE, tidy
from experiment.report.words.modes import variant_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MOST_CURVES, MOST_PICTURES = 14, 6


def can_compare(results: DataFrame) -> bool:
    """Whether there are several variants of the same reference networks, whose curves can share a picture.

    Variants that train other networks differ by those too: they have a plot each.
    """
    frame = tidy(results)
    own = frame[(frame["method"] == REFERENCE) & (frame["status"] == "done")]
    shared = own.groupby("net")["cell"].nunique().le(1).all() and own.groupby("net")["top1"].nunique().le(1).all()
    return compressed(frame)["variant"].nunique() > 1 and len(own) > 0 and bool(shared)


def comparisons(results: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """The pictures that compare variants: (label, "" for all of them together, rows); none of more curves than eyes."""
    if not can_compare(results):
        return
    frame = tidy(results)
    labels, variants = labels_of(frame), frame["variant"].nunique()
    if len(labels) * variants <= MOST_CURVES:
        yield "", frame
    elif variants <= MOST_CURVES and len(labels) <= MOST_PICTURES:
        for label in labels:
            yield label, frame[frame["label"].isin([label, REFERENCE])]


def plot_variants(
    results: DataFrame,
    quantity: Quantity = "parameters",
    metric: Metric = "top1",
    *,
    band: Band = "std",
    scale: Scale = "linear",
    keep_limits: tuple[float | None, float | None] = (None, None),
    names: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """Draw one curve a label and variant, as `plot_tradeoff` draws one a label; arguments as there.

    Raises: ConfigError: there is one variant alone, or they do not share their reference networks; and as there.
    """
    if not can_compare(results):
        raise ConfigError("results: expected at least two variants of the same reference networks, to be compared.")
    frame, naming = tidy(results), Naming(names or {})
    curve = frame["method"] != REFERENCE
    shown = {
        f"{label}, {variant_in_words(variant)}": f"{naming.name(label)}, {variant_in_words(variant)}"
        for label, variant in frame.loc[curve, ["label", "variant"]].drop_duplicates().itertuples(index=False)
    }
    told = [f"{label}, {variant_in_words(v)}" for label, v in zip(frame["label"], frame["variant"], strict=True)]
    order = {label: place for place, label in enumerate(labels_of(results))}
    frame["order"] = [order.get(label, -1) for label in frame["label"]]
    frame["label"] = frame["label"].where(~curve, told)
    frame = frame.assign(variant="").sort_values("order", kind="stable").drop(columns="order")
    return plot_tradeoff(
        frame, quantity, metric, band=band, scale=scale, keep_limits=keep_limits, names=shown, note=note
    )
