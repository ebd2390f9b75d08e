"""Whose results a folder holds: writers and readers refuse those of another parameter file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiment import load_network, load_results
from experiment.config import load
from experiment.errors import ConfigError, StoreError
from experiment.escaping import csv_table
from experiment.main import main
from experiment.report import find_experiments
from experiment.run.disk.parameters_file import owner_of, read_parameters, require_own, write_parameters
from experiment.run.disk.results_table import COLUMNS

TABLE = csv_table(
    COLUMNS,
    [
        dict.fromkeys(COLUMNS, "")
        | {"network": "lenet5", "label": "WT", "method": "WT", "net": 0, "status": "done", "cell": "1"}
    ],
)


def leave_results(path: Path, *overrides: str, name: str = "small") -> Path:
    """A folder as a run of the file leaves it, in so far as it matters here."""
    folder = Path("data/results") / name
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text(TABLE)
    write_parameters(folder, load(path, overrides), folder / "lock")
    return folder


@pytest.mark.parametrize("other", ["small.yaml", "small", "param/small.yml", "param/small"])
def test_writers_and_readers_refuse_the_folder_of_another_file(
    write: Any, small: dict[str, Any], other: str, capsys: Any
) -> None:
    first, second = write(small), write(small, other)
    folder = leave_results(first)
    said = f"{folder}: contains the results of another parameter file, {first}, "
    with pytest.raises(StoreError) as caught:
        write_parameters(folder, load(second), folder / "lock")
    assert said in str(caught.value)
    for extra in ([], ["--plan"]):
        assert main([str(second), "-j", "1", "-q", *extra]) == 2
        assert str(first) in capsys.readouterr().err
    if second.suffix:
        for read in (load_results, lambda path: load_network(path, method="WT"), lambda path: find_experiments([path])):
            with pytest.raises((StoreError, ConfigError), match="another parameter file"):
                read(second)
    assert len(load_results(first)) == 1
    assert find_experiments([first]) == [folder]


def test_one_call_refuses_two_files_that_would_share_a_folder(write: Any, small: dict[str, Any], capsys: Any) -> None:
    first, second = write(small), write(small, "small.yaml")
    assert main([str(first), str(second), "--plan"]) == 2
    assert f"{second}: its results would be in" in (error := capsys.readouterr().err)
    assert str(first) in error
    assert main([str(first), str(first), "--plan"]) == 0


def test_a_file_that_has_moved_with_its_results_or_without_is_no_other(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(small)
    leave_results(path)
    shutil.copytree(in_tmp, in_tmp / "copy", ignore=shutil.ignore_patterns("copy"))
    monkeypatch.chdir("copy")
    assert len(load_results("param/small.yaml")) == 1  # and not the original's, which is there, too
    monkeypatch.chdir("..")
    path.rename("param/renamed.yaml")
    require_own(Path("data/results/small"), write(small, "small.yaml"))


@pytest.mark.parametrize("line", ["", "# of [1]", '# of {"file": 3}', '# of {"file": "a\\u0000b"}', "# of {", "\xff"])
def test_a_folder_that_does_not_say_whose_it_is_is_anybodys(in_tmp: Path, line: str) -> None:
    (in_tmp / "parameters.yaml").write_bytes(b"# format 1\n" + line.encode("latin-1") + b"\n")
    assert owner_of(in_tmp).file is None
    require_own(in_tmp, in_tmp / "parameters.yaml")


def test_results_with_overrides_are_named_where_the_plain_ones_are_missing(write: Any, small: dict[str, Any]) -> None:
    path = write(small)
    folder = leave_results(path, "experiments.numNets=2", "seed=1", name="small@b82f0c8d")
    with pytest.raises(StoreError) as caught:
        load_results(path)
    assert f"'{folder}' (--set experiments.numNets=2 seed=1)" in str(caught.value)
    assert len(load_results(folder)) == 1
    assert read_parameters(folder).parameters.seed == 1


def test_a_file_that_was_not_run_is_said_to_have_no_results(write: Any, small: dict[str, Any]) -> None:
    path = write(small)
    said = r"small/results\.csv: no results yet\. Run .*; or pass results=, the folder of all results, if they are else"
    for read in (load_results, lambda path: load_network(path, method="WT")):
        with pytest.raises(StoreError, match=said):
            read(path)


def test_odd_names_of_files_do_not_hinder(write: Any, small: dict[str, Any]) -> None:
    path = write(small, "param/caf\udce9\n.yaml")
    folder = leave_results(path)
    assert json.loads((folder / "parameters.yaml").read_text().splitlines()[1][5:])["set"] == []
    require_own(folder, path)
