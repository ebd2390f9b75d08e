"""A method that restarts from the reference network in a cascade, beside one that goes on from where it was."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.config import load
from experiment.main import main
from experiment.run.grid.plan import Machine, plan_experiment

ONE_SHOT = "ALDS (One-shot)"
COLUMNS = ["parameters", "flops", "loss", "top1", "top1_before_retraining"]


@pytest.mark.usefixtures("no_plots")
def test_every_cell_is_that_of_the_one_shot_experiment(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["experiments"] |= {"methods": ["ALDS"], "mode": "retrain"}
    assert main([str(write(small, "param/oneshot.yaml")), "-j", "1", "-q"]) == 0
    small["experiments"] |= {"methods": ["ALDSNetOne", "ALDS"], "mode": "cascade"}
    assert main([str(write(small, "param/cascade.yaml")), "-j", "1", "-q"]) == 0

    results = in_tmp / "data/results"
    expected = pd.read_csv(results / "oneshot/results.csv").set_index("label").loc["ALDS", COLUMNS]
    cascade = pd.read_csv(results / "cascade/results.csv").set_index("label")[COLUMNS]
    assert (cascade.loc[ONE_SHOT].to_numpy() == expected.to_numpy()).all()
    first, second = (cascade.loc["ALDS"].to_numpy() == expected.to_numpy()).all(axis=1)
    assert first
    assert not second


def test_its_keys_hold_neither_what_came_before_nor_what_lies_between(write: Any, small: dict[str, Any]) -> None:
    def last(values: list[float], method: str, mode: str, iterations: int = -1) -> Any:
        small["experiments"] |= {"methods": [method], "mode": mode, "retrainIterations": iterations}
        small["experiments"]["spacing"][0]["values"] = values
        return plan_experiment(load(write(small)), Machine("cpu")).cells[-1]

    for mode in ("cascade", "cascade-rewind", "retrain"):
        cells = [last(values, ONE_SHOT, mode) for values in ([0.5, 0.1], [0.6, 0.1], [0.1])]
        cells.append(last([0.6, 0.4, 0.1], ONE_SHOT, mode, iterations=1))
        assert len({cell.key for cell in cells}) == 1
        assert all(cell.between == () for cell in cells)
    assert last([0.5, 0.1], "ALDS", "cascade").key != last([0.6, 0.1], "ALDS", "cascade").key
