"""Reading an experiment's folder, and finding experiments."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiment.errors import ConfigError, StoreError
from experiment.report import default_results, find_experiments, read_source
from experiment.report.mean_and_spread import summarize
from experiment.report.results_folder import read_cells
from experiment.report.results_table import references, tidy


def test_text_stays_text_and_numbers_are_numbers(synthetic: Any, tmp_path: Path) -> None:
    rows = [synthetic.cell_row("NA", 0, 0.5), synthetic.broken_row("nan", 1, 0.5, "failed", "1e3")]
    results = read_source(synthetic.write_experiment(tmp_path / "e", rows)).results
    assert list(results["label"]) == ["NA", "nan"]
    assert list(results["error"]) == ["", "1e3"]
    assert results["top1"].dtype == results["net"].dtype == np.float64
    assert np.isnan(results["top1"].iloc[1])


def test_frames_of_the_user_are_completed_and_left_as_they_were() -> None:
    given = pd.DataFrame(
        {"network": ["a"], "label": ["ALDS"], "net": [0], "status": ["done"], "error": [np.nan], "loss": [np.inf]}
    )
    before = given.copy()
    frame = tidy(given)
    pd.testing.assert_frame_equal(given, before)
    assert (frame["error"].iloc[0], frame["variant"].iloc[0], frame["method"].iloc[0]) == ("", "", "ALDS")
    assert frame[["loss", "top1"]].isna().all(axis=None)
    with pytest.raises(StoreError, match=r"column label is missing"):
        tidy(given.drop(columns="label"))


def test_means_and_deviations_against_numpy(synthetic: Any) -> None:
    results = synthetic.frame(synthetic.grid(("ALDS", "SVD"), nets=3, keeps=(0.5, 0.2)))
    summary = summarize(results)
    assert list(zip(summary["label"], summary["keep_target"], strict=True)) == [
        ("ALDS", 0.5), ("ALDS", 0.2), ("SVD", 0.5), ("SVD", 0.2)
    ]  # fmt: skip
    for _, row in summary.iterrows():
        cells = results[(results["label"] == row["label"]) & (results["keep_target"] == row["keep_target"])]
        for column in ("top1", "keep_flops", "loss"):
            assert row[column] == pytest.approx(np.mean(cells[column]))
            assert row[f"{column}_std"] == pytest.approx(np.std(cells[column], ddof=1))
        assert (row["cells"], row["nets"], row["complete"]) == (3, 3, True)


def test_references_come_from_other_rows_where_their_own_is_missing(synthetic: Any) -> None:
    rows = synthetic.grid(("ALDS",), nets=2, keeps=(0.5,))
    both = references(synthetic.frame(rows))
    told = references(synthetic.frame(rows[1:]))  # network 0's own row is not there
    assert sorted(both["top1"]) == sorted(told["top1"])
    assert list(told.sort_values("net")["parameters"]) == [synthetic.PARAMETERS] * 2
    assert told["loss"].notna().sum() == 1


def test_cells_files_are_found_by_their_key(synthetic: Any, tmp_path: Path) -> None:
    rows = synthetic.grid(("SVD-Energy",), nets=1, keeps=(0.5, 0.2))
    source = read_source(synthetic.write_experiment(tmp_path / "e", rows, cells=True))
    cells = source.results[source.results["method"] != "Reference"]
    layers = read_cells(source.folder, cells, "layers.csv", ("layer", "parameters"))
    assert len(layers) == 2 * len(synthetic.LAYERS)
    assert set(layers["keep_target"]) == {0.5, 0.2}
    assert set(layers["label"]) == {"SVD-Energy"}
    assert read_cells(tmp_path, cells, "layers.csv", ("layer",)).empty


def test_a_cell_without_epochs_is_not_damaged(synthetic: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without retraining history.csv has a header and no rows, whose columns pandas gives no numeric type."""
    rows = synthetic.grid(("SVD-Energy",), nets=1, keeps=(0.5,))
    source = read_source(synthetic.write_experiment(tmp_path / "e", rows, cells=True))
    for history in source.folder.glob("cells/*/history.csv"):
        history.write_text(history.read_text().partition("\n")[0] + "\n")
    for result in source.folder.glob("cells/*/result.json"):
        result.unlink()  # with its checksums
    assert read_cells(source.folder, source.results, "history.csv", ("epoch", "loss")).empty
    assert list(source.folder.glob("cells/*/history.csv"))
    assert "damaged" not in caplog.text


def test_files_of_cells_that_differ_in_form_are_read_as_each_alone(
    synthetic: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal headers are parsed at once: a damaged file costs its own rows alone, and no row changes its cell."""
    rows = synthetic.grid(("SVD-Energy",), nets=1, keeps=(0.9, 0.7, 0.5, 0.3, 0.1))
    source = read_source(synthetic.write_experiment(tmp_path / "e", rows, cells=True))
    cells = source.results[source.results["method"] != "Reference"]
    files = {row["keep_target"]: next(source.folder.glob(f"cells/*{row['cell']}/layers.csv"))
             for row in cells.to_dict("records")}  # fmt: skip
    for result in source.folder.glob("cells/*/result.json"):
        result.unlink()  # with its checksums
    columns = ("layer", "parameters")
    before = read_cells(source.folder, cells, "layers.csv", columns)
    files[0.9].write_text(files[0.9].read_text().rstrip("\n"))
    pd.testing.assert_frame_equal(read_cells(source.folder, cells, "layers.csv", columns), before)
    files[0.7].write_text('layer,parameters\n"two\nlines",7\n')
    files[0.5].write_text("layer,parameters\na,many\n")
    files[0.3].write_text("layer\na\n")
    found = read_cells(source.folder, cells, "layers.csv", columns)
    own = found[found["keep_target"] == 0.7]
    assert own[["layer", "parameters"]].to_numpy().tolist() == [["two\nlines", 7]]
    assert found.loc[found["keep_target"] == 0.3, "parameters"].isna().all()
    assert [place.count("layers.csv") for place in caplog.messages] == [1]
    assert set(found["keep_target"]) == {0.9, 0.7, 0.3, 0.1}
    kept = found[found["keep_target"].isin([0.9, 0.1])].reset_index(drop=True)
    expected = before[before["keep_target"].isin([0.9, 0.1])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, expected, check_dtype=False)


def test_settings_and_the_name_of_an_experiment(synthetic: Any, tmp_path: Path) -> None:
    source = read_source(synthetic.write_experiment(tmp_path / "results" / "cifar" / "resnet20@1a2b", []))
    assert source.name == "cifar/resnet20@1a2b"
    assert source.parameters.training.optimizer_kwargs["lr"] == 0.1
    assert source.results.empty


@pytest.fixture
def results(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/results of a working directory with three experiments, one of them with overridden settings."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "results"
    for name in ("digits/prune/lenet5", "digits/prune/lenet5@0123", "mnist/lenet300"):
        synthetic.write_experiment(folder / name, [synthetic.reference_row(0)])
    return folder


def test_experiments_are_found_from_folders_and_names(results: Path) -> None:
    assert default_results() == Path("data/results")
    names = ["digits/prune/lenet5", "digits/prune/lenet5@0123", "mnist/lenet300"]
    assert [path.relative_to("data/results").as_posix() for path in find_experiments()] == names
    assert find_experiments(["data/results/digits"]) == find_experiments(["digits"]) == find_experiments()[:2]
    assert find_experiments([results / "mnist" / "lenet300", "mnist"], results) == [results / "mnist" / "lenet300"]
    with pytest.raises(ConfigError) as caught:
        find_experiments(["nowhere", "mnist", "neither"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["nowhere", "neither"]


def test_experiments_are_found_from_parameter_files(results: Path) -> None:
    assert [path.name for path in find_experiments(["param/digits/prune/lenet5.yaml"])] == ["lenet5", "lenet5@0123"]
    assert [path.name for path in find_experiments(["param/digits/prune/lenet5.yaml"], overridden=False)] == ["lenet5"]
    with pytest.raises(ConfigError, match=r"no results found"):
        find_experiments(["param/cifar/prune/resnet20.yaml"])
    with pytest.raises(ConfigError):
        find_experiments(["param/no/such.yaml"])
