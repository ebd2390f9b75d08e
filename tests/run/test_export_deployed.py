"""Exports of an experiment: requested later too, made once, tested in their runtimes; errors are rows, not failures."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.deploy.formats import FORMATS, UNFINISHED, Format
from experiment.deploy.runtime_process import RuntimeProcess
from experiment.main import main
from experiment.run.disk.results_table import COLUMNS

pytestmark = pytest.mark.slow

FAULTY = """
def refuse(*how):
    raise ValueError("no operator Foo")
"""


@pytest.fixture
def other_runtimes(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openvino` refuses every file, and the runtime of `executorch` is not installed."""
    (in_tmp / "faulty_runtime.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(in_tmp)
    writer = FORMATS["safetensors"].write
    formats = [
        Format("openvino", "network.xml", writer, "faulty_runtime:refuse"),
        Format("executorch", "network.pte", writer, "", ("no_such_runtime",), "no-such-runtime"),
    ]
    for made in formats:
        monkeypatch.setitem(FORMATS, made.name, made)  # type: ignore[arg-type]


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "data/results/small/results.csv")


@pytest.mark.usefixtures("no_plots", "other_runtimes")
def test_files_are_made_later_too_and_once(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.setattr(RuntimeProcess.time, "__defaults__", (0.01,))
    small["retraining"]["numEpochs"] = 0
    small["experiments"] |= {"methods": ["WT"], "measure": ["memory"], "latencyBatches": [1, 3]}
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    stamps = {p: p.stat().st_mtime_ns for p in in_tmp.rglob("result.json")}
    small["experiments"]["export"] = ["safetensors", "openvino", "executorch"]
    path = str(write(small))
    assert main([path, "-j", "1"]) == 0  # a refusal is no failure
    assert {p: p.stat().st_mtime_ns for p in in_tmp.rglob("result.json")} == stamps
    said = capsys.readouterr().err
    assert said.count("no operator Foo") == said.count("pip install 'no-such-runtime'") == 1
    frame = table(in_tmp)
    own = [f"{what}_safetensors" for what in ("top1", "top5", "loss", "bytes", "difference")]
    own += [f"latency_safetensors_b{batch}" for batch in (1, 3)]
    assert list(frame.columns)[len(COLUMNS) : len(COLUMNS) + 11] == [
        "memory_weights", "memory_b1", "memory_b3", *own, "error_safetensors",
    ]  # fmt: skip
    assert (frame["status"] == "done").all()
    assert (frame["top1_safetensors"] == frame["top1"]).all()
    assert (frame["difference_safetensors"] < 1e-5).all()
    assert (frame[own[-2:]] > 0).all(axis=None)
    assert (frame["memory_weights"] == 4 * 266_610).all()  # masks are baked in
    assert (frame["memory_b3"] - frame["memory_b1"] == 2 * 4 * (784 + 300 + 300)).all()  # inputs, hidden, ReLU
    assert frame["error_openvino"].str.contains("no operator Foo").all()
    assert frame["error_executorch"].str.contains("needs the package no_such_runtime, which is not installed").all()
    assert frame[["error_safetensors", "top1_openvino", "latency_executorch_b1"]].isna().all(axis=None)
    for cell in (in_tmp / "data/results/small/cells").iterdir():
        files = json.loads((cell / "export.json").read_text())["formats"]["safetensors"]["files"]
        assert [file["bytes"] for file in files.values()] == [(cell / "export/network.safetensors").stat().st_size]

    assert main([path, "-j", "1"]) == 0
    assert "exporting" not in capsys.readouterr().err  # all are there, or were refused
    damaged = next(in_tmp.glob("data/results/small/cells/WT-*/export/network.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (left := damaged.parent / f"{UNFINISHED}abc").mkdir()  # as if killed
    (left / "network.safetensors").write_bytes(b"")
    monkeypatch.setitem(FORMATS, "executorch", FORMATS["openvino"])  # type: ignore[arg-type]  # as if installed
    assert main([path, "-j", "1"]) == 0
    assert "exporting 3 networks to executorch, safetensors" in capsys.readouterr().err
    assert not left.exists()
    assert (table(in_tmp)["top1_safetensors"] == frame["top1"]).all()
