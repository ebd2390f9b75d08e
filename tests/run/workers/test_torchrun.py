"""Experiments under torchrun: several processes train each network together, one runs the experiment."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.config import load
from experiment.errors import ConfigError
from experiment.main import main
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.run.machine import find_machine
from experiment.run.torchrun_launch import Launch, find_launch

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TIMES = ["seconds_compress", "seconds_retrain", "pareto"]  # the only columns that a second run may change
EXACT = ["parameters", "flops", "keep_parameters", "epochs", "status", "label", "keep_target"]

# Two processes, started as torchrun starts them. To import all takes longer than they do, so this does it once and
# forks: a request a line, answered by the process ids and, when the processes have ended, by their statuses.
FORKING = """
import json, os, signal, sys
import experiment.report, experiment.run.run_experiments
import experiment.run.cell.torchrun_group, experiment.run.workers.torchrun_worker
from experiment.main import main
experiment.report.write_report = lambda f: experiment.report.Report([], *(f / name for name in "abcd"))

def start(folder, arguments, environment):
    if pid := os.fork():
        return pid
    signal.alarm(600)  # a process that hangs is ended, and fails the test by its status
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name + "-" + environment["RANK"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = main(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 99
    sys.stdout.flush()
    os._exit(status)

for line in sys.stdin:
    folder, arguments, environments, experiment.run.cell.torchrun_group.SECONDS_TO_AGREE = json.loads(line)
    pids = [start(folder, arguments, environment) for environment in environments]
    print(json.dumps(pids), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""

Answer = list[tuple[int, str, str]]
RunTwo = Callable[..., Answer]


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},  # as the command sets it before torch is imported
    )
    yield process
    process.communicate(timeout=300)


@pytest.fixture
def run_two(forking: subprocess.Popen[str], in_tmp: Path) -> RunTwo:
    """Run the command in two processes, started as torchrun starts them; their statuses, outputs and errors.

    Args of the function: `agree` is how many seconds they give each other to fail in the same way.
    """

    def run(*arguments: str, during: Callable[[Sequence[int]], None] = lambda _: None, agree: float = 300.0) -> Answer:
        assert forking.stdin is not None
        assert forking.stdout is not None
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environments = [launched(rank, port) for rank in range(2)]
        request = (str(in_tmp), [*arguments, "--device", "cpu"], environments, agree)
        print(json.dumps(request), file=forking.stdin, flush=True)
        during(json.loads(forking.stdout.readline()))
        statuses = json.loads(forking.stdout.readline())
        return [
            (status, Path(f"out-{rank}").read_text(), Path(f"err-{rank}").read_text())
            for rank, status in enumerate(statuses)
        ]

    return run


def launched(rank: int, port: int = 29500) -> dict[str, str]:
    """What torchrun sets."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def table(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "small/results.csv")


def test_killed_and_interrupted_two_processes_give_what_one_gives(
    write: Any, small: dict[str, Any], run_two: RunTwo, no_plots: None
) -> None:
    small["training"]["numEpochs"] = 8
    small["experiments"] |= {"methods": ["WT", "FT", "ALDS"], "spacing": [{"type": "manual", "values": [0.3]}]}
    path = str(write(small))
    assert main([path, "-j", "1", "-q", "--device", "cpu", "--results", "one"]) == 0
    os.rename("data/trained_networks", "aside")
    (first, _, said), (second, _, nothing) = run_two(path, "--results", "two", during=interrupt)
    assert (first, second, nothing) == (130, -signal.SIGINT, "")
    assert "the same command continues" in said
    (first, _, said), (second, *_) = run_two(path, "--results", "two", during=kill_second, agree=1.0)
    assert (first, second) == (1, -signal.SIGKILL)
    assert "process 1 does not respond" in said
    assert not list(Path("two/small/cells").glob("[!.]*")), "what was broken off has not failed"
    command = [*TORCHRUN, "-m", "experiment.main", path, "--device", "cpu", "--results", "two"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 done cells") == 1, "one process speaks"
    assert "2 processes train each network" in done.stderr
    assert "Warning" not in done.stderr
    one, two = table("one"), table("two")
    pd.testing.assert_frame_equal(one[EXACT], two[EXACT])
    pd.testing.assert_frame_equal(one[["loss"]], two[["loss"]], rtol=0.02)
    pd.testing.assert_frame_equal(one[["top1", "top5"]], two[["top1", "top5"]], atol=0.01)
    assert not set(one["cell"]) & set(two["cell"])
    assert json.loads(Path("two/small/environment.json").read_text())["processes_per_training"] == 2
    os.rename("data/trained_networks", "aside, too")
    assert [status for status, *_ in run_two(path, "--results", "undisturbed")] == [0, 0]
    pd.testing.assert_frame_equal(table("undisturbed").drop(columns=TIMES), two.drop(columns=TIMES))


def interrupt(pids: Sequence[int]) -> None:
    """Ctrl-C reaches all processes."""
    wait_for_checkpoint()
    for pid in pids:
        os.kill(pid, signal.SIGINT)


def kill_second(pids: Sequence[int]) -> None:
    wait_for_checkpoint()
    os.kill(pids[1], signal.SIGKILL)


def wait_for_checkpoint() -> None:
    """Until a training under way has written one since now."""
    now, end = time.time_ns(), time.monotonic() + 300
    while not any(p.stat().st_mtime_ns > now for p in Path("data").glob("*/.partial-*/checkpoint.pt")):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_diverging_training_fails_its_cell_and_the_others_go_on(
    write: Any, small: dict[str, Any], run_two: RunTwo
) -> None:
    small["customizations"] = [{"key": ["retraining", "optimizerKwargs", "lr"], "value": lr} for lr in (1e20, 0.05)]
    small["experiments"]["spacing"][0]["values"] = [0.3]
    told = run_two(str(write(small)), "--results", "r")
    assert [status for status, *_ in told] == [1, 0]
    frame = table("r")
    compressed = frame[frame["method"] != "Reference"]
    assert list(compressed["status"]) == ["failed", "failed", "done", "done"]
    assert compressed["error"].iloc[0].startswith("training diverged in epoch 0")
    assert "Traceback" not in told[0][2] + told[1][2]


def test_both_processes_take_part_in_every_trial(
    write: Any, small: dict[str, Any], run_two: RunTwo, no_plots: None
) -> None:
    """Trials that diverge among them, after which the others go on."""
    rates = [1e20, 0.001, 0.05]
    small["experiments"] |= {"methods": ["FT", "ALDS"], "spacing": [{"type": "manual", "values": [0.3]}]}
    small["retraining"] |= {"tune": {"optimizerKwargs.lr": rates, "batchSize": [32, 64]}}
    path = str(write(small))
    assert main([path, "-j", "1", "-q", "--device", "cpu", "--results", "one"]) == 0
    assert [status for status, *_ in run_two(path, "--results", "two")] == [0, 0]
    for label in ("FT", "ALDS"):
        one, two = (pd.read_csv(next(Path(r).glob(f"small/cells/{label}-*/trials.csv"))) for r in ("one", "two"))
        pd.testing.assert_frame_equal(
            one[["optimizerKwargs.lr", "batchSize"]], two[["optimizerKwargs.lr", "batchSize"]]
        )
        pd.testing.assert_frame_equal(one[["valid_loss"]], two[["valid_loss"]], rtol=0.05)
        assert list(two["valid_loss"].isna()) == [rate == 1e20 for rate in two["optimizerKwargs.lr"]]


def test_the_second_process_is_given_the_teacher(
    write: Any, small: dict[str, Any], run_two: RunTwo, no_plots: None
) -> None:
    """Two processes that distil find what one does, to the rounding that training amplifies."""
    small["experiments"] |= {"methods": ["FT", "ALDS"], "spacing": [{"type": "manual", "values": [0.3]}]}
    small["retraining"] |= {"distillation": {"alpha": 1}, "penalties": [{"layers": "fc1", "l1": 0.01}]}
    path = str(write(small))
    assert main([path, "-j", "1", "-q", "--device", "cpu", "--results", "one"]) == 0
    assert [status for status, *_ in run_two(path, "--results", "two")] == [0, 0]
    one, two = table("one"), table("two")
    pd.testing.assert_frame_equal(one[EXACT], two[EXACT])
    pd.testing.assert_frame_equal(one[["loss"]], two[["loss"]], rtol=0.02)


def test_what_breaks_in_one_process_alone_ends_all_and_fails_no_cell(
    write: Any, small: dict[str, Any], run_two: RunTwo, in_tmp: Path
) -> None:
    code = """
        import os
        import torch

        def load(root, train):
            if os.environ["RANK"] == "1":
                raise RuntimeError("no data on this machine")
            return [(torch.full((1, 28, 28), i % 10, dtype=torch.uint8), i % 10) for i in range(40)]
    """
    (in_tmp / "my_data.py").write_text(textwrap.dedent(code))
    small["network"]["dataset"] = "my_data:load"
    first, second = run_two(str(write(small)), "--results", "r")
    assert (first[0], second[0]) == (1, 1)
    for _, _, said in (first, second):
        assert "process 1 cannot join" in said
        assert "no data on this machine" in said
        assert "Traceback" not in said
    assert not list(Path("r/small/cells").glob("[!.]*"))


def test_what_the_first_process_finds_wrong_ends_the_others_too(
    write: Any, small: dict[str, Any], run_two: RunTwo
) -> None:
    small["training"]["batchSize"] = 1
    first, second = run_two(str(write(small)))
    assert (first[0], second[0]) == (2, 0)
    assert "param/small.yaml:" in first[2]
    assert "training.batchSize: 2 processes train together, and each needs at least one image" in first[2]
    assert second[1:] == ("", "")


@pytest.mark.parametrize(
    ("setting", "more", "part"),
    [
        ("numEpoch", [], "Did you mean 'numEpochs'?"),
        ("numEpochs", ["--executor", "processes"], "not with torchrun, whose 2 processes train one network at a time"),
    ],
)
def test_a_wrong_file_or_call_ends_every_process_with_2_and_is_told_once(
    write: Any, small: dict[str, Any], run_two: RunTwo, setting: str, more: list[str], part: str
) -> None:
    small["training"][setting] = 3
    first, second = run_two(str(write(small)), *more)
    assert (first[0], second[0]) == (2, 2)
    assert first[2].count(part) == 1
    assert second[1:] == ("", "")


def test_a_plan_is_told_once_and_by_the_keys_of_as_many_processes(
    write: Any, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = write(small)
    _set(monkeypatch, launched(1))
    assert main([str(path), "--plan", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == ""
    _set(monkeypatch, launched(0))
    assert main([str(path), "--plan=json", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    keys = [{cell.key for cell in plan_experiment(load(path), Machine("cpu", n)).cells} for n in (1, 2, 3)]
    assert len(set.union(*keys)) == 15
    assert keys[0] == {cell.key for cell in plan_experiment(load(path), Machine("cpu")).cells}


def test_what_torchrun_says_of_a_process() -> None:
    assert find_launch({}) is None
    assert find_launch({"RANK": "0", "WORLD_SIZE": "2"}) is None
    assert find_launch(launched(0) | {"WORLD_SIZE": "1"}) is None
    assert find_launch(launched(1)) == Launch(1, 1, 2, 2)
    second_node = find_launch(launched(0) | {"RANK": "2", "WORLD_SIZE": "4"})
    assert second_node == Launch(2, 0, 4, 2)
    assert second_node.speaks
    assert not second_node.leads


def test_each_process_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("experiment.run.machine.fastest_precision", lambda index: "bf16")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    _set(monkeypatch, launched(1))
    assert find_machine("cuda") == Machine("cuda:1", 2, "bf16")
    with pytest.raises(ConfigError, match="--device cuda:0: under torchrun every process takes a GPU of its own"):
        find_machine("cuda:0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(ConfigError, match="2 processes on this machine need as many GPUs. Got 1"):
        find_machine("cuda")


def _set(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
