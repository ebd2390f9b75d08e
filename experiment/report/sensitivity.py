"""What single layers cost a network when they alone are compressed: the rows of sensitivity.csv, and their ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiment.report.results_folder import Source
from experiment.run.disk.results_table import read_table
from experiment.run.disk.sensitivity_table import COLUMNS, TABLE

if TYPE_CHECKING:
    from pandas import DataFrame

LOSS = 0.01  # of the metric: layers that cost no more are not named
MOST_PARAMETERS = 0.1  # of the network, in the layers that are named: the others must shrink more for them


def read_sensitivity(source: Source, variant: str) -> DataFrame:
    """The rows of a variant; none if nothing was measured."""
    import pandas as pd

    path = source.folder / TABLE
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    found = read_table(path, keep_default_na=False, na_values={name: [""] for name in ("keep", "loss", "parameters")})
    return found[found["variant"] == variant]


def middle_keep(keeps: Sequence[float]) -> float:
    """The keep ratio by which layers are ranked."""
    ordered = sorted(set(keeps), reverse=True)
    return ordered[(len(ordered) - 1) // 2]


def ranking(rows: DataFrame, parameters: float) -> DataFrame:
    """The layers of one label by falling loss at the middle keep ratio: layers, loss, parameters, whole.

    `whole` says whether to leave a layer whole: it costs more than 1 point (or 1 %), and with those above it holds no
    more than a tenth of the network's parameters. A layer that holds more is passed over.

    Args:
        rows: of sensitivity.csv; losses are averaged over networks.
        parameters: of the network.
    """
    here = rows[rows["keep"] == middle_keep(list(rows["keep"].dropna()))]
    table = here.groupby("layers", sort=False)[["loss", "parameters"]].mean().reset_index()
    table = table.sort_values("loss", ascending=False, kind="stable").reset_index(drop=True)
    held, whole = 0.0, []
    for loss, size in zip(table["loss"], table["parameters"], strict=True):
        whole.append(bool(loss > LOSS and held + size <= MOST_PARAMETERS * parameters))
        held += size if whole[-1] else 0.0
    return table.assign(whole=whole)
