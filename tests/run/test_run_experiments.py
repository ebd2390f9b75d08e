"""Whole experiments on real digits: finished, continued, extended, killed, failing, in one process and in several."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiment.main import main
from experiment.run.disk.results_table import COLUMNS

pytestmark = pytest.mark.slow

PARAM = "param/small.yaml"


def table(folder: Path, name: str = "small") -> pd.DataFrame:
    return pd.read_csv(folder / "data/results" / name / "results.csv")


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """But for durations, the only columns that a second run may change."""
    measured = "seconds|latency|frames"
    a, b = (frame.loc[:, ~frame.columns.str.contains(measured)] for frame in (a, b))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_an_experiment_leaves_all_that_it_promises(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["experiments"]["methods"] = ["WT", "FT", "SVD", "ALDS", "Fake"]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    frame = table(in_tmp)
    assert tuple(frame.columns) == COLUMNS
    assert list(frame["method"]) == ["Reference", *(m for m in ("WT", "FT", "SVD", "ALDS", "Fake") for _ in range(2))]
    assert set(frame["status"]) == {"done"}
    compressed = frame[~frame["method"].isin(["Reference", "Fake"])]
    assert (compressed["keep_parameters"] <= compressed["keep_target"]).all()
    assert (frame[frame["method"] == "Fake"]["keep_parameters"] == 1).all()
    assert (frame["epochs"] == [0] + [1] * 10).all()
    assert frame["top1_reference"].nunique() == 1
    assert frame["top1"].max() > 0.8
    wt = frame[frame["method"] == "WT"].iloc[0]
    assert wt["flops"] == wt["flops_reference"] > wt["flops_unmasked"]
    assert wt["bytes_values"] == 4 * wt["parameters"] < wt["bytes_sparse"] < min(wt["bytes_dense"], wt["bytes_file"])
    folder = in_tmp / "data/results/small"
    for cell in frame["cell"]:
        (place,) = folder.glob(f"cells/*-{cell}")
        assert {"result.json", "layers.csv", "history.csv", "network.pt"} <= {p.name for p in place.iterdir()}
    assert {"parameters.yaml", "environment.json", "report.md", "report.html"} <= {p.name for p in folder.iterdir()}
    assert list(folder.glob("plots/*.png"))
    assert not list(folder.glob("cells/.*"))


@pytest.mark.usefixtures("no_plots")
def test_a_second_run_computes_nothing_and_a_larger_grid_only_what_is_new(finished: Path) -> None:
    first, stamps = table(finished), _stamps(finished)
    assert main([PARAM, "-j", "1", "-q"]) == 0
    assert _stamps(finished) == stamps
    larger = yaml.safe_load(Path(PARAM).read_text())
    larger["experiments"]["methods"] = ["SVD-Energy", "WT", "SVD"]
    larger["experiments"]["spacing"][0]["values"] = [0.5, 0.3, 0.1]
    Path(PARAM).write_text(yaml.safe_dump(larger))
    assert main([PARAM, "-j", "1", "-q"]) == 0
    assert stamps.items() <= _stamps(finished).items()
    frame = table(finished)
    assert len(frame) == 10
    kept = frame[frame["cell"].isin(first["cell"])].reset_index(drop=True)
    same(kept.drop(columns="pareto"), first.drop(columns="pareto"))  # the front is that of the larger grid


def _stamps(folder: Path) -> dict[str, int]:
    found = [*folder.glob("data/results/small/cells/*/result.json"), *folder.glob("data/trained_networks/*/network.pt")]
    return {str(p): p.stat().st_mtime_ns for p in found}


@pytest.mark.usefixtures("no_plots")
def test_shares_of_a_job_array_add_up(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    path = str(write(small))
    assert main([path, "-j", "2", "-i", "1", "-q"]) == 0
    assert set(table(in_tmp)["method"]) == {"Reference", "SVD"}
    assert main([path, "-j", "2", "-i", "0", "-q"]) == 0
    assert set(table(in_tmp)["method"]) == {"Reference", "WT", "SVD"}


@pytest.mark.usefixtures("no_plots")
def test_a_diverging_training_fails_its_cells_and_says_why(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any
) -> None:
    small["retraining"] = {"numEpochs": 1, "optimizerKwargs": {"lr": 1e20}}
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 1
    frame = table(in_tmp).set_index("method")
    assert frame.loc["Reference", "status"] == "done"
    assert set(frame.loc["WT", "status"]) == {"failed"}
    assert "keep 0.5" in capsys.readouterr().out
    plan = _plan_json(path, capsys)
    assert [c["status"] for c in plan] == ["done", "failed", "failed", "failed", "failed"]
    assert main([path, "-j", "1", "-q"]) == 1, "failed cells stay failed until asked for again"


@pytest.mark.usefixtures("no_plots")
def test_rewinding_takes_the_weights_of_the_rewind_epoch(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    import torch

    from experiment import load_network

    small["retraining"] = {"startEpoch": 1, "numEpochs": 1}
    small["experiments"] |= {"mode": "cascade-rewind", "methods": ["WT"]}
    small["training"]["numEpochs"] = 2
    assert main([str(write(small)), "-j", "1", "-q"]) == 0  # nothing to retrain: the pruned network itself
    small["retraining"] = {"startEpoch": 1, "numEpochs": 2, "optimizerKwargs": {"lr": 0.0, "momentum": 0.0}}
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    (rewind,) = in_tmp.glob("data/trained_networks/*/rewind-1.pt")
    early = torch.load(rewind, weights_only=True)
    pruned = load_network(in_tmp / "data/results/small", method="WT", keep=0.5)
    from experiment.layers.masks import bake_masks, named_masks

    masks = named_masks(pruned)
    for name, weight in bake_masks(pruned).state_dict().items():
        assert torch.equal(weight, early[name] * masks.get(name, torch.tensor(True))), name


@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_variants_that_rewind_to_other_epochs_share_an_untouched_reference(
    write: Any, small: dict[str, Any], in_tmp: Path
) -> None:
    import torch

    small["experiments"] |= {"methods": ["WT"], "mode": "retrain"}
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    (reference,) = in_tmp.glob("data/trained_networks/*/network.pt")
    trained = reference.read_bytes()
    small["retraining"] = {}
    small["experiments"]["mode"] = "cascade-rewind"
    small["customizations"] = [{"key": ["retraining", "startEpoch"], "value": epoch} for epoch in (0, 1)]
    assert main([str(write(small)), "-j", "2", "-q"]) == 0
    assert set(table(in_tmp)["status"]) == {"done"}
    assert reference.read_bytes() == trained
    early, later = (torch.load(reference.with_name(f"rewind-{e}.pt"), weights_only=True) for e in (0, 1))
    assert all(not torch.equal(early[name], later[name]) for name in early)


def test_a_network_is_loaded_by_its_keep_ratio(finished: Path) -> None:
    from experiment import load_network
    from experiment.errors import CompressionError, ConfigError
    from experiment.measure import count, example_input

    rows = table(finished).set_index(["method", "keep_target"])
    example = example_input((1, 28, 28))
    network = load_network(PARAM, method="SVDNet", keep=0.5)
    assert count(network, example).parameters == rows.loc[("SVD", 0.5), "parameters"]
    with pytest.warns(UserWarning, match=r"no cell has keep ratio 0\.2: the nearest, 0\.1, is loaded"):
        network = load_network(PARAM, method="WT", keep=0.2)
    assert count(network, example).parameters == rows.loc[("WT", 0.1), "parameters"]
    with pytest.raises(ConfigError, match=r"2 finished cells .*WT keep 0\.5, WT keep 0\.1"):
        load_network(PARAM, method="WT")
    with pytest.raises(ConfigError, match=r"expected one. Did you mean 'WT'"):
        load_network(finished / "data/results/small", method="WTT", keep=0.5)
    for wanted, hint in (
        ({"net": 3}, "There is net 0 only."),
        ({"repetition": 1}, "There is repetition 0 only."),
        ({"variant": "a=1"}, "There is variant '' only."),
        ({"net": 3, "variant": "a=1"}, "There is net 0 only. There is variant '' only."),
    ):
        with pytest.raises(ConfigError) as caught:
            load_network(PARAM, method="WT", keep=0.5, **wanted)  # type: ignore[arg-type]
        assert str(caught.value).endswith(f"; expected one. {hint}")
    with pytest.raises(ConfigError, match="net must be a whole number, as in results.csv. Got '0'"):
        load_network(PARAM, method="WT", keep=0.5, net="0")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"0 finished cells match FT.*Choose between: Reference"):
        load_network(PARAM, method="FT", keep=0.5)
    for keep in (math.nan, 0, 2, "0.5"):
        with pytest.raises(CompressionError, match=r"keep must be a number in \(0, 1\]"):
            load_network(PARAM, method="WT", keep=keep)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_plots")
def test_a_failure_to_show_progress_costs_no_result(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiment.run.workers.progress_bar import ProgressBar

    def broken(self: ProgressBar, *_: object) -> None:
        raise BrokenPipeError

    path = str(write(small))
    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "_show_cell", broken)
        assert main([path, "-j", "1", "-q"]) == 130
    assert set(table(in_tmp)["status"]) == {"done"}
    assert main([path, "-j", "1", "-q"]) == 0
    assert len(table(in_tmp)) == 5


def _plan_json(path: str, capsys: Any) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main([path, "--plan=json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("no_plots")
def test_a_diverging_reference_fails_its_cells(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["training"]["optimizerKwargs"] = {"lr": 1e20}
    assert main([str(write(small)), "-j", "1", "-q"]) == 1
    frame = table(in_tmp)
    assert set(frame["status"]) == {"failed"}
    assert frame["error"].iloc[1].startswith("the reference network failed")
