"""Results that are removed or damaged while others build on them: made again, and nobody else is blamed for it."""

import contextlib
import json
import shutil
import signal
import threading
import weakref
from pathlib import Path
from time import sleep
from typing import Any

import pandas as pd
import pytest

from experiment import files
from experiment.config import load
from experiment.main import main
from experiment.run.cell import chain
from experiment.run.disk.store import Store
from experiment.run.grid.cells import Cell
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.run.workers import pool

RESULTS, TRAINED = Path("data/results/small"), Path("data/trained_networks")
SECONDS = ["seconds_compress", "seconds_retrain", "pareto"]


def table() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "results.csv", dtype=str).drop(columns=SECONDS)


def cell(name: str) -> Path:
    (place,) = (RESULTS / "cells").glob(f"{name}-*")
    return place


@pytest.fixture
def cascade(write: Any, small: dict[str, Any]) -> str:
    small["training"]["numEpochs"], small["retraining"]["numEpochs"] = 1, 0
    small["experiments"] |= {
        "methods": ["WT"],
        "mode": "cascade",
        "spacing": [{"type": "manual", "values": [0.5, 0.1]}],
    }
    return str(write(small))


@pytest.mark.parametrize("removed", [Path("data"), "Reference-n0-r0-1", "WT-n0-r0-0.5", TRAINED])
@pytest.mark.usefixtures("no_plots")
def test_what_is_removed_during_a_run_is_made_again(
    cascade: str, monkeypatch: pytest.MonkeyPatch, removed: Path | str, capsys: Any
) -> None:
    """After the first cell of the cascade, whose second one starts from it, and before that one's chain goes on."""
    assert main([cascade, "-j", "1", "-q"]) == 0
    before = table()
    shutil.rmtree("data")
    store_failure, passed = chain._store_failure, chain.ChainCompression.cell_ended
    gone: list[Path] = []

    def remove(walk: Any, done: Cell, result: Any) -> None:
        passed(walk, done, result)
        if not gone:
            gone.append(removed if isinstance(removed, Path) else cell(removed))
            shutil.rmtree(gone[0])

    monkeypatch.setattr(chain.ChainCompression, "cell_ended", remove)
    monkeypatch.setattr(chain, "_store_failure", lambda *of: pytest.fail(f"blamed: {of[1]}"))
    status = main([cascade, "-j", "1", "-q"])
    monkeypatch.setattr(chain, "_store_failure", store_failure)
    assert status in (0, 1)  # what is removed and not needed any more is pending
    assert gone
    assert main([cascade, "-j", "1", "-q"]) == 0
    pd.testing.assert_frame_equal(table(), before)


@pytest.mark.usefixtures("no_plots")
def test_a_cascade_whose_predecessor_is_damaged_is_repaired_by_the_same_command(cascade: str, capsys: Any) -> None:
    assert main([cascade, "-j", "1", "-q"]) == 0
    before = table()
    shutil.rmtree(cell("WT-n0-r0-0.1"))
    path = cell("WT-n0-r0-0.5") / "network.pt"
    path.write_bytes(bytes(path.stat().st_size))
    assert main([cascade, "-j", "1"]) == 0
    messages = capsys.readouterr().err
    assert f"{path}: " in messages
    assert f"Set aside as {path.parent.name}.damaged" in messages
    pd.testing.assert_frame_equal(table(), before)


@pytest.mark.usefixtures("no_plots")
def test_waiting_for_another_process_is_noted_once(cascade: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """For the piece of work that it holds, not for those that need it."""
    plan = plan_experiment(load(cascade), Machine("cpu"))
    store, reference = Store(RESULTS), plan.references[0].cell
    slept, held = [], contextlib.ExitStack()
    held.enter_context(store.try_lock(reference.key))

    def sleep_in_vain(seconds: float) -> None:
        slept.append(seconds)
        if slept.count(pool.SECONDS_BETWEEN_TRIES) == 3:
            held.close()

    monkeypatch.setattr(pool.time, "sleep", sleep_in_vain)
    assert main([cascade, "-j", "1"]) == 0
    assert capsys.readouterr().err.count("waiting for another process, which computes Reference of network 0") == 1


def test_waiting_for_a_lock_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "SECONDS_BEFORE_NOTE", 0.01)
    entered, path = threading.Event(), tmp_path / "a.lock"

    def wait_for_it() -> None:
        with files.locked(path, "writes"):
            entered.set()

    with files.locked(path, "writes"):
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        while not caplog.records:
            sleep(0.01)
        assert not entered.is_set()
    waiter.join()
    assert entered.is_set()
    assert caplog.messages == [f"waiting for another process that writes (it holds {path})"]


@pytest.mark.usefixtures("no_plots")
def test_a_failure_of_anothers_making_lasts_as_long_as_that(cascade: str) -> None:
    """Stored, and told as failed; to be computed as soon as the failed one is away or done."""
    assert main([cascade, "-j", "1", "-q"]) == 0
    plan = plan_experiment(load(cascade), Machine("cpu"))
    reference, first, second = plan.cells
    store = Store(RESULTS)

    def say(of: Cell, **result: Any) -> None:
        path = store.cell_folders()[of.key] / "result.json"
        path.write_text(json.dumps({"format": 1, "files": {}, **result}))

    def known() -> set[str]:
        return {c.keep_target for c in plan.cells if c.key in store.results([c])}

    done = (store.cell_folders()[first.key] / "result.json").read_text()
    say(second, status="failed", error="the one before", because=first.key)
    assert known() == {1.0, 0.5}, "the one before is done"
    say(first, status="failed", error="of its own")
    assert known() == {1.0, 0.5, 0.1}
    say(first, status="failed", error="the reference", because=reference.key)
    assert known() == {1.0}, "the reference is done, and the chain of blame ends there"
    say(first, status="failed", error="a circle", because=second.key)
    assert known() == {1.0}
    (store.cell_folders()[first.key] / "result.json").write_text(done)
    assert main([cascade, "-j", "1", "-q"]) == 0
    assert set(table()["status"]) == {"done"}


def test_told_to_stop_while_it_draws(
    cascade: str, forked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Libraries for drawing keep weak references, in whose callbacks Python throws the interruption away."""
    monkeypatch.setattr(
        "experiment.report.write.save_figure", lambda *_: weakref.finalize(set(), signal.raise_signal, signal.SIGTERM)
    )
    process = forked(lambda: main([cascade, "-j", "1", "-q"]))
    assert process.wait() == 130
    assert "Exception ignored" not in process.said
    assert process.said.count("interrupted: ") == 1
    assert not (tmp_path / "data" / "results" / "small" / "report.md").exists()
