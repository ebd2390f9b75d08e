"""What the tests of the small experiment read: the keys of its plan, its table, and the histories of its cells."""

from pathlib import Path

import pandas as pd

from experiment.config import load
from experiment.run.grid.plan import Machine, plan_experiment

TIMES = ["seconds_compress", "seconds_retrain", "pareto"]


def keys(path: Path) -> list[str]:
    """The keys of all cells of a parameter file."""
    return [cell.key for cell in plan_experiment(load(path), Machine("cpu")).cells]


def table(folder: Path) -> pd.DataFrame:
    """results.csv as text, without times."""
    return pd.read_csv(folder / "data/results/small/results.csv", dtype=str).drop(columns=TIMES)


def histories(folder: Path) -> dict[str, pd.DataFrame]:
    """Folder of a cell -> its history, without times."""
    found = (folder / "data/results/small/cells").glob("*/history.csv")
    return {path.parent.name: pd.read_csv(path).drop(columns="seconds") for path in found}
