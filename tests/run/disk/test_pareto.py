"""The column `pareto` against a search through all pairs of networks."""

from typing import Any

import numpy as np
import pytest

from experiment.run.disk.pareto import COSTS, mark_pareto

Row = dict[str, Any]


def rows_of(rng: np.random.Generator, better: str, nets: int = 2) -> list[Row]:
    """Networks with small whole numbers as figures and costs, so that ties are frequent."""
    shared = {"dataset": "D", "dataset_test": "D", "network": "n", "variant": "", "status": "done", "primary": "score",
              "better": better}  # fmt: skip
    rows = []
    for label in ("Reference", "WT", "FT"):
        for keep in (0.5, 0.2, 0.1) if label != "Reference" else (1.0,):
            for _ in range(nets):
                costs = {c: int(rng.integers(1, 5)) for c in (*COSTS, "latency_ms_b1") if c != "seconds"}
                times = {"seconds_compress": 0.5, "seconds_retrain": int(rng.integers(1, 4))}
                row = {"method": label, "label": label, "keep_target": keep, "score": int(rng.integers(1, 6))}
                rows.append(shared | row | costs | times)
    return rows


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_network_is_as_good_for_less(better: str, seed: int) -> None:
    rows = rows_of(np.random.default_rng(seed), better)
    mark_pareto(rows)
    means: dict[tuple[str, float], dict[str, float]] = {}
    for key in dict.fromkeys((r["label"], r["keep_target"]) for r in rows):
        own = [r for r in rows if (r["label"], r["keep_target"]) == key]
        means[key] = {c: float(np.mean([r[c] for r in own])) for c in ("score", "parameters", "flops", "latency_ms_b1")}
        means[key]["seconds"] = np.nan if key[0] == "Reference" else 0.5 + np.mean([r["seconds_retrain"] for r in own])
    sign = 1 if better == "higher" else -1
    for row in rows:
        mine = means[row["label"], row["keep_target"]]
        for cost in ("parameters", "flops", "latency_ms_b1", "seconds"):
            beaten = any(
                sign * other["score"] >= sign * mine["score"] and other[cost] <= mine[cost]
                and (sign * other["score"] > sign * mine["score"] or other[cost] < mine[cost])
                for other in means.values()
            )  # fmt: skip
            expected = not beaten and not np.isnan(mine[cost])
            assert (cost in row["pareto"].split()) is expected, (row["label"], row["keep_target"], cost)


def test_equal_networks_are_on_the_front_together() -> None:
    rows = [row | {"score": 0.4595, "flops": 7} for row in rows_of(np.random.default_rng(0), "higher")]
    rows[-1]["score"] = 0.45949  # the same in a table with two digits of percent
    mark_pareto(rows)
    assert ["flops" in row["pareto"] for row in rows] == [True] * (len(rows) - 2) + [False] * 2


def test_cells_without_figures_are_on_no_front() -> None:
    rows = rows_of(np.random.default_rng(0), "higher", nets=1)
    rows[1] |= {"status": "failed", "score": ""}
    rows[2] |= {"method": "Fake"}
    rows[3] |= {"score": None}
    mark_pareto(rows)
    assert [row["pareto"] for row in rows[1:4]] == ["", "", ""]
    assert any(row["pareto"] for row in rows[4:])


def test_variants_have_fronts_of_their_own() -> None:
    rows = rows_of(np.random.default_rng(0), "higher", nets=1)
    other = [row | {"variant": "v", "score": 0} for row in rows]
    mark_pareto([*rows, *other])
    assert any(row["pareto"] for row in other)
    mark_pareto([])
