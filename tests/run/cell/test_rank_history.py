"""ranks.csv: written where it is asked for, whole after an interruption, and no part of any key."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

from experiment import load_network
from experiment.effective_rank import LayerRank, layer_ranks
from experiment.main import main
from experiment.report.plots import gallery
from experiment.run.cell import rank_history as ranks_module
from experiment.run.cell.rank_history import RankLog

pytestmark = pytest.mark.slow

COLUMNS = ["epoch", "layer", "effective_rank", "stable_rank", "full_rank"]


def ranks(results: Path) -> dict[str, pd.DataFrame]:
    """Cell -> its ranks.csv."""
    found = (results / "small/cells").glob("*/ranks.csv")
    return {path.parent.name: pd.read_csv(path) for path in sorted(found)}


@pytest.fixture
def asking(small: dict[str, Any]) -> dict[str, Any]:
    small["training"]["numEpochs"] = 3
    small["retraining"]["numEpochs"] = 2
    small["experiments"] |= {"measure": ["rank"], "methods": ["WT", "SVD"]}
    return small


def test_every_epoch_of_every_network_has_its_ranks(
    write: Any, asking: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "GALLERY", (gallery.effective_ranks,))  # the other plots take long
    assert main([str(write(asking)), "-j", "1", "-q"]) == 0
    found = ranks(in_tmp / "data/results")
    assert len(found) == 5
    for name, frame in found.items():
        epochs = [0, 1, 2, 3] if name.startswith("Reference") else [0, 1, 2]
        layers = list(frame["layer"].unique())
        assert list(frame.columns) == COLUMNS
        assert len(layers) == 3
        assert list(frame["epoch"]) == [epoch for epoch in epochs for _ in layers]
        assert list(frame["layer"]) == layers * len(epochs)
        assert (frame["effective_rank"] <= frame["full_rank"]).all()
        assert (frame["stable_rank"] <= frame["effective_rank"]).all()
    svd = next(frame for name, frame in found.items() if name.startswith("SVD") and "-0.1-" in name)
    wt = next(frame for name, frame in found.items() if name.startswith("WT") and "-0.1-" in name)
    assert svd["effective_rank"].mean() < wt["effective_rank"].mean()  # the same size, but few dimensions
    network = load_network(in_tmp / "param/small.yaml", method="SVD", keep=0.1)
    expected = [rank.effective_rank for rank in layer_ranks(network)]
    assert list(svd[svd["epoch"] == 2]["effective_rank"]) == pytest.approx(expected, rel=1e-6)
    text = (in_tmp / "data/results/small/report.md").read_text()
    assert "plots/effective-rank.png" in text
    assert (in_tmp / "data/results/small/plots/effective-rank.pdf").is_file()


@pytest.mark.usefixtures("no_plots")
def test_nothing_is_measured_or_renamed_where_nobody_asks(
    write: Any, asking: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking["experiments"]["methods"] = ["WT"]
    asking["training"]["numEpochs"] = asking["retraining"]["numEpochs"] = 1
    plain = {**asking, "experiments": {k: v for k, v in asking["experiments"].items() if k != "measure"}}
    assert main([str(write(plain)), "-j", "1", "-q"]) == 0
    assert not ranks(in_tmp / "data/results")
    stamps = {p: p.stat().st_mtime_ns for p in in_tmp.rglob("result.json")}
    assert "without ranks.csv" not in capsys.readouterr().out
    assert main([str(write(asking)), "-j", "1", "-q"]) == 0  # the same keys: all is done
    assert {p: p.stat().st_mtime_ns for p in in_tmp.rglob("result.json")} == stamps
    assert "3 cells without ranks.csv" in capsys.readouterr().out
    asking["experiments"]["spacing"][0]["values"] = [0.5, 0.3, 0.1]
    assert main([str(write(asking)), "-j", "1", "-q"]) == 0
    assert len(ranks(in_tmp / "data/results")) == 1  # the new one
    shutil.rmtree(in_tmp / "data/results")  # the reference network is still there, trained without being measured
    assert main([str(write(asking)), "-j", "1", "-q"]) == 0
    (reference,) = (frame for name, frame in ranks(in_tmp / "data/results").items() if name.startswith("Reference"))
    assert list(reference["epoch"]) == [1, 1, 1]


@pytest.mark.usefixtures("no_plots")
def test_in_mode_lc_only_references_have_ranks_and_it_is_said(
    write: Any, asking: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking["experiments"] |= {"methods": ["WT"], "mode": "lc"}
    asking["training"]["numEpochs"] = asking["retraining"]["numEpochs"] = 1
    asking["lc"] = {"steps": 2, "iterations": 1}
    assert main([str(write(asking)), "-j", "1", "-q"]) == 0
    assert [name.partition("-")[0] for name in ranks(in_tmp / "data/results")] == ["Reference"]
    assert "2 cells without ranks.csv: mode lc records reference networks only" in capsys.readouterr().out


@pytest.mark.usefixtures("no_plots")
def test_without_retraining_there_is_the_state_after_compression(
    write: Any, asking: dict[str, Any], in_tmp: Path
) -> None:
    asking["retraining"] = {"numEpochs": 0}
    asking["training"]["numEpochs"] = 1
    assert main([str(write(asking)), "-j", "1", "-q"]) == 0
    cells = {name: frame for name, frame in ranks(in_tmp / "data/results").items() if "Reference" not in name}
    assert [set(frame["epoch"]) for frame in cells.values()] == [{0}] * 4


@pytest.mark.usefixtures("no_plots")
def test_interrupted_and_taken_up_again_no_epoch_is_lost(
    write: Any, asking: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking["experiments"]["methods"] = ["WT"]
    path = str(write(asking))
    assert main([path, "-j", "1", "-q", "--results", "whole"]) == 0
    (in_tmp / "data/trained_networks").rename(in_tmp / "aside")
    left = 3

    def interrupt(network: nn.Module) -> list[LayerRank]:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return layer_ranks(network)

    monkeypatch.setattr(ranks_module, "layer_ranks", interrupt)
    interruptions = 0
    while (ended := main([path, "-j", "1", "-q", "--results", "broken"])) != 0:
        assert ended == 130
        left, interruptions = 3, interruptions + 1
    assert interruptions > 3
    whole, broken = ranks(in_tmp / "whole"), ranks(in_tmp / "broken")
    assert whole.keys() == broken.keys()
    for name, frame in whole.items():
        pd.testing.assert_frame_equal(frame, broken[name], check_exact=True)


@pytest.mark.parametrize("wrong", [["ranks"], "rank", [3]])
def test_what_cannot_be_measured_is_refused(
    write: Any, asking: dict[str, Any], wrong: object, capsys: pytest.CaptureFixture[str]
) -> None:
    asking["experiments"]["measure"] = wrong
    assert main([str(write(asking)), "--plan"]) == 2
    assert "experiments.measure" in capsys.readouterr().err


def test_a_damaged_log_is_renamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    RankLog(tmp_path).note(0, network)
    path = tmp_path / "ranks.csv"
    path.write_bytes(b"what,is\nthis,here\n\xff\n")
    RankLog(tmp_path).note(1, network)
    assert "is damaged; renamed to ranks.csv.damaged" in caplog.text
    assert list(pd.read_csv(path)["epoch"]) == [1, 1]
