"""Latency and sparse bytes: measured where they are asked for, later too, once, and no part of any key."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import load_network
from experiment.layers.masks import named_masks
from experiment.main import main
from experiment.measure import Latency
from experiment.run import measure_deployed
from experiment.run.disk import results_table
from experiment.run.disk.results_table import COLUMNS


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "data/results/small/results.csv")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Latencies made up from the batch; what was measured, as (batch, threads, masks left), is noted."""
    noted: list[tuple[int, int, bool]] = []

    def made_up(network: torch.nn.Module, input_shape: tuple[int, ...], batch: int, threads: int) -> Latency:
        network(torch.zeros(batch, *input_shape))
        assert not network.training
        noted.append((batch, threads, bool(named_masks(network))))
        return Latency(batch, 2.0 * batch + len(noted) / 100, 0.5)

    monkeypatch.setattr("experiment.measure.measure_latency", made_up)
    return noted


@pytest.mark.usefixtures("no_plots")
def test_latency_is_measured_later_too_and_once(
    write: Any, small: dict[str, Any], in_tmp: Path, timed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    small["experiments"]["methods"] = ["WT", "FT"]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert tuple(table(in_tmp).columns) == COLUMNS
    assert timed == []
    stamps = {p: p.stat().st_mtime_ns for p in in_tmp.rglob("result.json")}
    small["experiments"]["measure"] = ["latency"]
    assert main([str(write(small)), "-j", "1"]) == 0  # the same keys: nothing is computed again
    assert {p: p.stat().st_mtime_ns for p in in_tmp.rglob("result.json")} == stamps
    assert "measuring the latency of 5 networks" in capsys.readouterr().err
    assert timed == [(1, 1, False), (64, 1, False)] * 5
    frame = table(in_tmp)
    names = [
        name
        for b in (1, 64)
        for name in (
            *(f"latency_{what}" for what in (f"ms_b{b}", f"iqr_ms_b{b}", f"layout_b{b}", f"ms_b{b}_reference")),
            f"frames_per_second_b{b}",
        )
    ]
    assert tuple(frame.columns) == (*COLUMNS, *names, "latency_device")
    reference = frame[frame["method"] == "Reference"].iloc[0]
    assert (frame["latency_ms_b64_reference"] == reference["latency_ms_b64"]).all()
    assert frame["latency_ms_b1"].nunique() == 5
    assert (frame["frames_per_second_b64"] * frame["latency_ms_b64"] / 64_000 - 1).abs().max() < 1e-4
    assert (frame["latency_iqr_ms_b1"] == 0.5).all()
    assert frame["latency_device"].str.startswith("cpu (").all()
    assert frame["latency_device"].str.endswith(", 1 thread").all()
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert len(timed) == 10
    small["experiments"]["latencyBatches"] = [1, 2]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert timed[10:] == [(1, 1, False), (2, 1, False)] * 5
    assert "latency_ms_b2" in table(in_tmp)
    assert "latency_ms_b64" not in table(in_tmp)


@pytest.mark.usefixtures("no_plots")
def test_latencies_of_two_machines_are_never_mixed(
    write: Any, small: dict[str, Any], in_tmp: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small["experiments"] |= {"methods": ["WT"], "measure": ["latency"], "latencyBatches": [1]}
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 0
    assert len(timed) == 3
    monkeypatch.setattr(measure_deployed, "device_in_words", lambda machine: "cpu (another)")
    assert main([path, "-j", "1", "-q"]) == 0
    assert len(timed) == 3, "all were measured on one machine: nothing is missing"
    small["experiments"]["spacing"][0]["values"] = [0.5, 0.3, 0.1]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert len(timed) == 3 + 4
    assert set(table(in_tmp)["latency_device"]) == {"cpu (another), 1 thread"}
    damaged = next(in_tmp.glob(f"data/results/small/cells/WT-*/{results_table.LATENCY}"))
    damaged.write_text("{")
    assert main([path, "-j", "1", "-q"]) == 0
    assert len(timed) == 3 + 4 + 1
    assert json.loads(damaged.read_text())["batches"][0]["batch"] == 1


@pytest.mark.usefixtures("no_plots")
def test_of_the_shares_of_a_job_array_the_last_one_measures(
    write: Any, small: dict[str, Any], in_tmp: Path, timed: list[Any]
) -> None:
    small["experiments"] |= {"methods": ["WT", "SVD"], "measure": ["latency"]}
    path = str(write(small))
    assert main([path, "-j", "2", "-i", "0", "-q"]) == 0
    assert timed == []
    assert table(in_tmp)["latency_ms_b1"].isna().all()
    assert main([path, "-j", "2", "-i", "1", "-q"]) == 0
    assert table(in_tmp)["latency_ms_b1"].notna().all()


@pytest.mark.usefixtures("no_plots")
def test_sparse_bytes_against_numpy(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["retraining"] = {"numEpochs": 0}
    small["experiments"] |= {"methods": ["WT", "SVD"], "measure": ["bytes"]}
    small["experiments"]["spacing"][0]["values"] = [0.99, 0.5, 0.01]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    frame = table(in_tmp).set_index(["method", "keep_target"])
    assert list(frame.columns[-3:]) == ["bytes_bitmask", "bytes_csr", "sparse_format"]
    for keep in (0.99, 0.5, 0.01):
        network = load_network(in_tmp / "data/results/small", method="WT", keep=keep)
        bitmask = csr = 4 * (300 + 100 + 10)  # biases
        for mask in named_masks(network).values():
            kept = np.asarray(mask)
            bitmask += 4 * kept.sum() + -(-kept.size // 8)
            csr += 8 * kept.sum() + 4 * (len(kept) + 1)
        row = frame.loc[("WT", keep)]
        assert (row["bytes_bitmask"], row["bytes_csr"]) == (bitmask, csr)
    assert list(frame.loc["WT", "sparse_format"]) == ["dense", "bitmask", "csr"]
    svd = frame.loc[("SVD", 0.5)]
    assert svd["bytes_bitmask"] == svd["bytes_csr"] == svd["bytes_dense"]
    assert svd["sparse_format"] == "dense"


@pytest.mark.parametrize("wrong", [[], [0], 3, ["a"]])
def test_batches_are_positive_numbers(write: Any, small: dict[str, Any], wrong: object, capsys: Any) -> None:
    small["experiments"]["latencyBatches"] = wrong
    assert main([str(write(small)), "--plan"]) == 2
    assert "experiments.latencyBatches" in capsys.readouterr().err
