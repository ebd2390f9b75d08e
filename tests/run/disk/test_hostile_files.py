"""Files that somebody else wrote with bad intent: nothing is executed, nothing written where it does not belong."""

import os
import pickle
import re
import resource
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiment import load_network, load_results
from experiment.config import load
from experiment.errors import ConfigError, ExperimentError, StoreError
from experiment.main import main
from experiment.report.plots.figure import plot_files
from experiment.run.grid.plan import Machine, plan_experiment

PARAM = "param/small.yaml"
RESULTS = Path("data/results/small")
COMMAND = "touch executed"
UP = "../" * 3
NASTY = [
    f"{UP}evil", "/etc/evil", "..", "C:\\evil", "\n", "-rf", "x" * 5000, "e\u202el", "", "$(touch executed)", "a:b",
]  # fmt: skip

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {k: {k: x}}\n" + "".join(
    f"a{i}: &a{i} {{l: *a{i - 1}, m: *a{i - 1}, n: *a{i - 1}}}\n" for i in range(1, 40)
)
HOSTILE_YAML = {
    "python object": f"a: !!python/object/apply:os.system ['{COMMAND}']\n",
    "python name": "network: !!python/name:os.system\n",
    "other tag": "network: !exec 'touch executed'\n",
    "billion laughs": LAUGHS,
    "billion laughs in mappings": MERGES,
    "deep": "a: " + "[" * 100_000,
    "deep mappings": "{a: " * 50_000,
    "endless device": "network: {file: /dev/zero}\n",
    "includes itself": "network: {file: small.yaml}\n",
    "includes a secret": "network: {file: /etc/passwd}\n",
    "large": "a: " + "x" * 5_000_000,
    "long number": f"seed: {'9' * 200_000}\n",
}
BAD_DATA = ("python object", "billion laughs", "billion laughs in mappings", "deep", "large")


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (COMMAND,)


def everything(folder: Path) -> dict[str, bytes | None]:
    """All that lies below a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(autouse=True)
def _nothing_is_executed(tmp_path: Path) -> Any:
    yield
    assert not [*tmp_path.parent.glob("executed"), *tmp_path.rglob("executed")]


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_a_hostile_parameter_file_is_refused_in_little_time_and_memory(in_tmp: Path, forked: Any, text: str) -> None:
    (in_tmp / "param").mkdir()
    (in_tmp / PARAM).write_text(text)
    before = everything(in_tmp)

    def run() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 300_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        return main([PARAM])

    process = forked(run)
    assert process.wait() == 2, process.said
    assert "param/small.yaml" in process.said
    assert "Traceback" not in process.said
    assert len(process.said) < 5000
    assert "root:" not in process.said
    process.log.unlink()
    assert everything(in_tmp) == before


@pytest.mark.parametrize(
    ("block", "key"),
    [("network", "name"), ("network", "dataset"), ("experiments", "methods"), ("training", "optimizer")],
)
@pytest.mark.usefixtures("no_plots")
def test_names_that_are_looked_up_are_never_paths(
    write: Any, small: dict[str, Any], in_tmp: Path, block: str, key: str, capsys: Any
) -> None:
    (in_tmp / "evil.py").write_text("import os; os.system('touch executed')\n")
    for name in (f"{UP}evil", "/etc/passwd", f"{in_tmp}/evil", f"../{in_tmp.name}/evil:make", "./evil:make"):
        small[block][key] = [name] if key == "methods" else name
        path = write(small)
        before = everything(in_tmp)
        assert main([str(path), "-q"]) == 2
        assert name.partition(":")[0] in capsys.readouterr().err
        assert everything(in_tmp) == before


def test_no_label_and_no_variant_leaves_the_folder_of_cells(write: Any, small: dict[str, Any]) -> None:
    for name in NASTY:
        small["experiments"]["methods"] = [{"name": "WT", "label": name}]
        small["customizations"] = [{"key": ["network", "settings", "x"], "value": name}]
        if not name.strip():
            with pytest.raises(ConfigError, match="label"):
                plan_experiment(load(write(small)), Machine("cpu"))
            continue
        if name.startswith("-"):
            with pytest.raises(ConfigError, match="like a spreadsheet formula"):
                plan_experiment(load(write(small)), Machine("cpu"))
            del small["experiments"]["methods"][0]["label"]
        plan = plan_experiment(load(write(small)), Machine("cpu"))
        for cell in plan.cells:
            assert Path(cell.folder).name == cell.folder
            assert cell.folder.endswith(f"-{cell.key}")
            assert len(cell.folder) < 200
        assert all(Path(task.reference.folder).name == task.reference.folder for task in plan.references)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r'"\ud800"', r"\ud800"),
        (r'"a\0b"', r"\x00"),
        (r'"\e[31m"', r"\x1b"),
        (r'"a\rb"', r"\r"),
        (r'"\u2028"', r"\u2028"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(in_tmp: Path, text: str, shown: str) -> None:
    """Wherever it stands: the names of files and folders, labels, and keys."""
    path = in_tmp / "odd.yaml"
    for line in (f"network_names: {{WT: {text}}}", f"directories: {{results: {text}}}", f"network: {{{text}: 1}}"):
        path.write_text(f"seed: 0\n{line}\n")
        with pytest.raises(ConfigError) as refused:
            load(path)
        (problem,) = [problem for problem in refused.value.problems if "contains" in problem]
        assert re.match(r"odd\.yaml:2: .*contains ", problem)
        assert shown in problem


@pytest.mark.parametrize(
    "labels", [["Reference"], ["Reference "], ["=cmd"], ["@a"], ["a\tb"], ["a b", "a  b"], ["WT", "W\u200bT"], [" "]]
)
def test_labels_that_a_table_cannot_show_or_tell_apart_are_refused(
    write: Any, small: dict[str, Any], labels: list[str]
) -> None:
    small["experiments"]["methods"] = [
        {"name": name, "label": label} for name, label in zip(("WT", "FT"), labels, strict=False)
    ]
    with pytest.raises(ConfigError, match=r"param/small\.yaml:\d+: experiments\.methods\[\d\]: .*label"):
        plan_experiment(load(write(small)), Machine("cpu"))


def test_a_run_with_nasty_names_writes_below_data_alone(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With report and plots (as empty files), which have labels in their names too."""

    def save(figure: object, stem: Path) -> None:
        stem.parent.mkdir(exist_ok=True)
        for path in plot_files(stem):
            path.touch()

    monkeypatch.setattr("experiment.report.write.save_figure", save)
    evil = "<script>alert(1)</script>"
    small["training"]["numEpochs"] = 1
    small["experiments"] |= {
        "methods": [{"name": "WT", "label": f"{UP}{evil}"}, {"name": "WT", "label": "$x^{", "recalibrate": False}],
        "spacing": [{"type": "manual", "values": [0.5]}],
    }
    small["retraining"]["numEpochs"] = 0
    small["customizations"] = [{"key": ["network", "settings"], "value": {}}]
    small["network_names"] = {f"{UP}{evil}": f"{UP}{evil}"}
    small["description"] = evil
    path = write(small)
    before, around = everything(in_tmp), sorted(p.name for p in in_tmp.parent.iterdir())
    assert main([str(path), "-j", "1", "-q"]) == 0
    after = everything(in_tmp)
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"data"}
    assert sorted(p.name for p in in_tmp.parent.iterdir()) == around
    assert evil not in (RESULTS / "report.html").read_text()
    assert evil not in re.sub(r"(?s)```.*?```", "", (RESULTS / "report.md").read_text())
    assert load_results(path)["label"].tolist().count(f"{UP}{evil}") == 1


@pytest.mark.usefixtures("no_plots")
def test_payloads_in_files_of_weights_are_set_aside_and_made_again(finished: Path, caplog: Any) -> None:
    """A cell's network, a trained network, its rewind file, and a checkpoint of a training under way."""
    before = pd.read_csv(RESULTS / "results.csv")
    (trained,) = Path("data/trained_networks").glob("*/network.pt")
    cell = next(RESULTS.glob("cells/WT-n0-r0-0.5-*"))
    partial = RESULTS / "cells" / f".partial-{cell.name.rpartition('-')[2]}"
    partial.mkdir()
    hostile = [cell / "network.pt", trained, trained.with_name("rewind-1.pt"), partial / "checkpoint.pt"]
    for path, how in zip(hostile, (pickle.dumps, None, pickle.dumps, None), strict=True):
        if how is None:
            torch.save({"specification": Payload(), "state_dict": {}, "format": 1}, path)
        else:
            path.write_bytes(how(Payload()))
    with pytest.raises(StoreError, match="more than plain data"):
        load_network(hostile[0])
    assert main([PARAM, "-j", "1", "-q"]) == 0
    for path in (hostile[0], hostile[1], hostile[3]):
        assert str(path) in caplog.text
    after = pd.read_csv(RESULTS / "results.csv")
    same = ["label", "keep_target", "parameters", "loss", "top1", "status"]
    pd.testing.assert_frame_equal(after[same], before[same])


@pytest.mark.parametrize(
    "change",
    [
        {"name": "subprocess:Popen", "input_shape": ["sh", "-c", COMMAND], "output_size": 10},
        {"name": "os:system"},
        {"name": "../evil"},
        {"output_size": "10"},
        {"input_shape": [1, 28]},
        {"settings": 7},
    ],
    ids=str,
)
def test_a_file_of_weights_does_not_choose_the_code_that_is_run(
    finished: Path, change: dict[str, Any], capsys: Any
) -> None:
    path = next(RESULTS.glob("cells/WT-n0-r0-0.5-*")) / "network.pt"
    content = torch.load(path, weights_only=True)
    content["specification"]["architecture"] |= change
    torch.save(content, path)
    for what, how in ((path, {}), (RESULTS, {"method": "WT", "keep": 0.5})):
        with pytest.raises(ExperimentError, match="network"):
            load_network(what, **how)


@pytest.mark.parametrize("text", [HOSTILE_YAML[name] for name in BAD_DATA], ids=BAD_DATA)
def test_a_hostile_results_folder_harms_no_reader(finished: Path, text: str) -> None:
    from experiment.report import read_source

    (RESULTS / "parameters.yaml").write_text(text)
    before = everything(finished)
    with pytest.raises(StoreError, match=r"parameters.yaml"):
        read_source(RESULTS)
    assert everything(finished) == before


def test_hostile_rows_and_facts_harm_no_reader(finished: Path) -> None:
    from experiment.report import read_source
    from experiment.report.results_folder import read_cells

    text = (RESULTS / "results.csv").read_text()
    for cell in {row.rpartition("-")[2] for row in map(str, RESULTS.glob("cells/*"))}:
        text = text.replace(cell, f"{UP}{UP}etc/passwd")
    (RESULTS / "results.csv").write_text(text)
    before = everything(finished)
    frame = read_source(RESULTS).results
    assert read_cells(RESULTS, frame, "layers.csv", ["layer"]).empty
    with pytest.raises(StoreError, match="the folder of cell .* is missing"):
        load_network(RESULTS, method="WT", keep=0.5)
    for content in ("[" * 200_000, "{" * 3, '{"a": NaN', "\xff"):
        (RESULTS / "environment.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(StoreError, match=r"environment.json"):
            read_source(RESULTS)
    (RESULTS / "environment.json").unlink()
    assert {k: v for k, v in everything(finished).items() if "environment" not in k} == {
        k: v for k, v in before.items() if "environment" not in k
    }


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, "[]", '{"format": 1}', '{"format": 1, "status": "won", "files": {}}',
     '{"format": 1, "status": "done", "files": {}}',
     '{"format": 1, "status": "done", "files": {}, "parameters": "many", "flops": 1, "top1": 0.5}',
     '{"format": 1, "status": "failed", "files": 3}',
     '{"format": 1, "status": "failed", "files": {"../../x": {"bytes": 3}}}'],
)  # fmt: skip
def test_a_result_that_is_none_is_set_aside_or_read(finished: Path, content: str) -> None:
    from experiment.run.disk.store import Store

    place = next(RESULTS.glob("cells/WT-n0-r0-0.5-*"))
    (place / "result.json").write_text(content)
    found = Store(RESULTS).read(place)
    assert found is None or found["status"] == "failed"
    assert place.exists() == (found is not None)


@pytest.mark.parametrize("name", ["..evil", "evil..", "a b;c", "-rf", "…", ".hidden"])
def test_an_experiments_name_stays_below_the_results(write: Any, small: dict[str, Any], name: str) -> None:
    plan = plan_experiment(load(write(small, f"param/{name}/{name}.yaml")), Machine("cpu"))
    place = (Path("data/results") / plan.name).resolve()
    assert place.is_relative_to(Path("data/results").resolve())
    assert len(place.relative_to(Path("data/results").resolve()).parts) == 2
