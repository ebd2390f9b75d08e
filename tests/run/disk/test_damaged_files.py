"""Truncated and damaged files, files of another version, a full disk, and folders that cannot be written to."""

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import load_network, load_results
from experiment.config import load
from experiment.errors import StoreError
from experiment.main import main
from experiment.run.cell import reference as reference_module
from experiment.run.cell.context import Context
from experiment.run.cell.reference import obtain_reference
from experiment.run.disk.network_file import read_weights
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.plan import Machine, plan_experiment

pytestmark = pytest.mark.slow

PARAM = "param/small.yaml"
RESULTS = Path("data/results/small")
MEASURED_ANEW = r"seconds|latency|frames|pareto"  # what a second run may change
POINTS = 20  # of a file at which it is truncated


def table() -> pd.DataFrame:
    frame = pd.read_csv(RESULTS / "results.csv", dtype=str)
    return frame.drop(columns=[name for name in frame if re.match(MEASURED_ANEW, name)])


def cell(name: str) -> Path:
    (folder,) = (RESULTS / "cells").glob(f"{name}-*")
    return folder


def cuts(content: bytes) -> Iterator[bytes]:
    """Truncations of a file, among them all that lack only its last few bytes."""
    step = max(1, len(content) // POINTS)
    for end in [*range(0, len(content), step), *range(max(0, len(content) - 5), len(content))]:
        yield content[:end]


# --- truncated -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["result.json", "layers.csv", "history.csv", "ranks.csv", "network.pt"])
def test_a_truncated_file_of_a_cell_is_detected(finished: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    place = cell("WT-n0-r0-0.5")
    store, whole = Store(RESULTS), Store(RESULTS).read(place)
    aside = finished / "aside"
    shutil.copytree(place, aside)
    content = (place / file).read_bytes()
    for cut in cuts(content):
        (place / file).write_bytes(cut)
        caplog.clear()
        if file == "result.json" and cut == content[:-1]:  # all but the end of the line
            assert store.read(place) == whole
            continue
        assert store.read(place, repair=False) is None
        assert store.read(place) is None
        assert str(place / file) in caplog.text
        assert f"set aside as {place.name}.damaged" in caplog.text
        assert not place.exists()
        shutil.rmtree(place.with_name(f"{place.name}.damaged"))
        shutil.copytree(aside, place)


def test_what_was_set_aside_is_no_cell_any_more(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = cell("WT-n0-r0-0.5")
    (place / "network.pt").write_bytes(b"")
    assert main([PARAM, "-j", "1", "-q"]) == 0
    assert caplog.text.count("is damaged") == 1
    assert place.with_name(f"{place.name}.damaged").is_dir()
    assert place.is_dir()
    assert len(Store(RESULTS).cell_folders()) == len(table())


def test_truncated_or_changed_weights_are_refused_or_unharmed(finished: Path) -> None:
    path = cell("WT-n0-r0-0.1") / "network.pt"
    content, whole = path.read_bytes(), read_weights(path)[1].unpacked()
    for cut in cuts(content):
        path.write_bytes(cut)
        with pytest.raises(StoreError, match="network.pt"):
            load_network(path)
    refused = 0
    for at in range(7, len(content), len(content) // 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            state = read_weights(path)[1].unpacked()
        except StoreError:
            refused += 1
        else:
            assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
    assert refused > 40


class Trains(Exception):
    """Stands for a training, which takes long."""


@pytest.mark.parametrize(
    ("file", "outcome"),
    [("network.pt", "train"), ("rewind-1.pt", "train"), ("history.csv", "keep"), ("ranks.csv", "keep")],
)
def test_a_reference_networks_file_cut_anywhere_is_noticed(
    finished: Path, file: str, outcome: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Networks are trained again; a history, which only shows how one was trained, is not worth it."""

    def train(*_: object, **__: object) -> None:
        raise Trains

    monkeypatch.setattr(reference_module, "training_loop", train)
    plan = plan_experiment(load(PARAM), Machine("cpu"))
    task = plan.references[0]
    directories = Directories(Path("data/results"), Path("data/trained_networks"), Path("data/datasets"))
    context = Context(Store(RESULTS), directories, plan.machine)
    folder = directories.trained_networks / task.reference.folder
    content = (folder / file).read_bytes()
    aside = finished / "aside"
    shutil.copytree(folder, aside)
    for cut in [*cuts(content)][:: 1 if outcome == "keep" else 6]:
        (folder / file).write_bytes(cut)
        caplog.clear()
        if outcome == "train":
            with pytest.raises(Trains):
                obtain_reference(task.reference, task.variant.parameters, context, lambda event: None)
        else:
            obtain_reference(task.reference, task.variant.parameters, context, lambda event: None)
            assert f"{file} is damaged: set aside as {file}.damaged" in caplog.text
            assert (folder / f"{file}.damaged").read_bytes() == cut
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(aside, folder)


@pytest.mark.usefixtures("no_plots")
def test_the_command_recomputes_whatever_is_truncated(
    finished: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of different kinds, truncated to different shares."""
    before, damaged = table(), {
        cell("Reference") / "layers.csv": 0.98,
        cell("WT-n0-r0-0.5") / "result.json": 0.4,
        cell("WT-n0-r0-0.1") / "network.pt": 0.98,
        cell("SVD-n0-r0-0.5") / "history.csv": 0.0,
        cell("SVD-n0-r0-0.1") / "latency.json": 0.4,
        cell("SVD-n0-r0-0.1") / "bytes.json": 0.0,
        RESULTS / "results.csv": 0.4,
        RESULTS / "parameters.yaml": 0.98,
        RESULTS / "environment.json": 0.4,
    }  # fmt: skip
    for path, share in damaged.items():
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    assert main([PARAM, "-j", "1"]) == 0
    pd.testing.assert_frame_equal(table(), before)
    messages = "".join(capsys.readouterr()) + caplog.text
    for path in [*damaged][:6]:
        assert str(path) in messages
    assert len([*RESULTS.glob("cells/*.damaged")]) == 4
    assert all(path.is_file() for path in damaged)


def test_readers_refuse_truncated_files(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table may lack its last rows, but a number is never read in half."""
    from experiment.report.results_folder import read_cells, read_source

    content, cells = (RESULTS / "results.csv").read_bytes(), list(load_results(RESULTS)["cell"])
    for cut in cuts(content):
        (RESULTS / "results.csv").write_bytes(cut)
        if cut.endswith(b"\n"):
            assert list(load_results(RESULTS)["cell"]) == cells[: cut.count(b"\n") - 1]
        else:
            for read in (load_results, read_source):
                with pytest.raises(StoreError, match=r"results.csv: is (truncated|not a table)"):
                    read(RESULTS)
    (RESULTS / "results.csv").write_bytes(content)
    content = (RESULTS / "environment.json").read_bytes()
    for cut in cuts(content[:-1]):
        (RESULTS / "environment.json").write_bytes(cut)
        with pytest.raises(StoreError, match="environment.json"):
            read_source(RESULTS)
    (RESULTS / "environment.json").write_bytes(content)
    path = cell("WT-n0-r0-0.5") / "layers.csv"
    whole = read_cells(RESULTS, read_source(RESULTS).results, "layers.csv", ["layer", "parameters"])
    path.write_bytes(path.read_bytes()[:-9])
    left = read_cells(RESULTS, read_source(RESULTS).results, "layers.csv", ["layer", "parameters"])
    assert len(left) == len(whole) * 4 // 5
    assert f"{path} is damaged" in caplog.text


# --- damaged, of the same size ---------------------------------------------------------------------------------------


DAMAGE = {
    "layers.csv": lambda c: bytes(np.random.default_rng(0).integers(0, 256, len(c), dtype=np.uint8)),
    "history.csv": lambda c: bytes(len(c)),
    "ranks.csv": lambda c: re.sub(rb"[0-9]", b"x", c),
}


@pytest.mark.parametrize("file", DAMAGE)
def test_damage_of_the_same_size_is_logged_once_and_costs_only_its_cell(
    finished: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Readers skip the file; the command sets its cell aside. Files that are in no manifest do not break readers."""
    from experiment.report.results_folder import read_cells, read_source

    place = cell("WT-n0-r0-0.5")
    path = place / file
    path.write_bytes(DAMAGE[file](path.read_bytes()))
    rows, columns = read_source(RESULTS).results, ["layer", "epoch", "parameters", "loss", "effective_rank"]
    read_cells(RESULTS, rows, file, columns)
    assert caplog.text.count(f"{path} is damaged and is ignored") == 1
    result = json.loads((place / "result.json").read_text())
    (place / "result.json").write_text(json.dumps(result | {"files": {}}))
    read_cells(RESULTS, rows, file, columns)
    (place / "result.json").write_text(json.dumps(result))
    caplog.clear()
    assert Store(RESULTS).read(place) is None
    assert caplog.text.count(f"{path} is damaged: set aside as {place.name}.damaged") == 1


# --- of another version ----------------------------------------------------------------------------------------------


def test_every_file_says_its_version_or_lies_beside_one_that_does(finished: Path) -> None:
    """results.csv is made from the cells on every run, and is read by its columns; .outputs/ is read by its shape."""
    for path in (path for path in Path("data").rglob("*") if path.is_file() and path.suffix != ".lock"):
        if path.suffix == ".json":
            assert json.loads(path.read_text())["format"] >= 1, path
        elif path.suffix == ".yaml":
            assert path.read_text().startswith("# format 1")
        elif path.name == "network.pt":
            assert torch.load(path, weights_only=True)["specification"]["format"] >= 1
        else:
            beside = {"result.json", "files.json"} & {p.name for p in path.parent.iterdir()}
            assert beside or path.name == "results.csv" or path.parent.name == ".outputs", path


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("version", [99, "2", None])
def test_results_of_another_version_are_refused_and_left_alone(finished: Path, version: object, capsys: Any) -> None:
    path = cell("WT-n0-r0-0.5") / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": version}))
    before = path.read_bytes()
    assert main([PARAM, "-q"]) == 2
    assert f"result.json: format version {version}, this program reads 1." in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.usefixtures("no_plots")
def test_a_trained_network_of_another_version_is_not_trained_again(finished: Path, capsys: Any) -> None:
    """It may have cost a month, and another version of the program can read it."""
    (path,) = Path("data/trained_networks").glob("*/network.pt")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"specification": content["specification"] | {"format": 99}}, path)
    before = path.read_bytes()
    shutil.rmtree(RESULTS / "cells")
    assert main([PARAM, "-j", "1", "-q"]) == 2
    assert path.read_bytes() == before
    assert "format version 99, this program reads 1." in capsys.readouterr().err
    assert not list((RESULTS / "cells").glob("[!.]*")), "no cell is blamed for it"


# --- nothing can be written ------------------------------------------------------------------------------------------


def unfinished() -> dict[str, int]:
    """Take two cells and the trained network away; returns what the others are."""
    for name in ("SVD-n0-r0-0.1", "WT-n0-r0-0.1"):
        shutil.rmtree(cell(name))
    return {str(path): path.stat().st_mtime_ns for path in (RESULTS / "cells").glob("*/*")}


def leftovers() -> list[Path]:
    return [*Path("data").rglob(".writing-*"), *Path("data").rglob(".*.partial*")]


@pytest.mark.parametrize(("limit", "workers"), [(600, "1"), (30_000, "2"), (600_000, "1")])
@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_a_full_disk_ends_the_run_and_costs_nothing(finished: Path, forked: Any, limit: int, workers: str) -> None:
    """No file may grow beyond a limit: the system's own error, in whichever file comes first."""
    before, kept = table(), unfinished()

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return main([PARAM, "-j", workers, "-q"])

    process = forked(run)
    assert process.wait() == 2
    assert len(re.findall(r"cannot be written: File too large\. Fix this", process.said)) == 1
    assert "Traceback" not in process.said
    assert not leftovers()
    assert all(Path(path).stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert main([PARAM, "-j", "1", "-q"]) == 0
    pd.testing.assert_frame_equal(table(), before)


@pytest.mark.parametrize(("code", "writes"), [(errno.EROFS, 0), (errno.EDQUOT, 5), (errno.ENOSPC, 9)])
@pytest.mark.usefixtures("no_plots")
def test_a_disk_that_fills_up_in_the_middle(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, code: int, writes: int
) -> None:
    """After so many files none more can be brought to the disk; the log has them one by one."""
    before, kept = table(), unfinished()
    fsync, left = os.fsync, writes

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main([PARAM, "-j", "1", "-q"]) == 2
    assert f"cannot be written: {os.strerror(code)}. Fix this, or choose another" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", fsync)
    assert not leftovers()
    assert all(Path(path).stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert "failed" not in set(table()["status"]), "the disk's fault is not the cell's"
    assert main([PARAM, "-j", "1", "-q"]) == 0
    pd.testing.assert_frame_equal(table(), before)


@pytest.mark.parametrize(
    ("occupied", "workers"),
    [("data/results", "1"), ("data/results/small", "1"), ("data/results/small/cells", "2"),
     ("data/trained_networks", "1")],
)  # fmt: skip
@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_a_file_in_the_place_of_a_folder(
    write: Any, small: dict[str, Any], in_tmp: Path, forked: Any, occupied: str, workers: str
) -> None:
    """Not even root can write below it."""
    path = str(write(small))
    (in_tmp / occupied).parent.mkdir(parents=True, exist_ok=True)
    (in_tmp / occupied).write_text("a file")
    process = forked(lambda: main([path, "-j", workers, "-q"]))
    assert process.wait() == 2
    assert occupied in process.said
    assert "Traceback" not in process.said
    assert (in_tmp / occupied).read_text() == "a file"


def test_a_place_where_nothing_can_be_created(write: Any, small: dict[str, Any], capsys: Any) -> None:
    assert main([str(write(small)), "-q", "--results", "/proc/results"]) == 2
    error = capsys.readouterr().err
    assert "/proc/results" in error
    assert "choose another folder with --results" in error
