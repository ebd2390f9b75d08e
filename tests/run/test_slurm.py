"""The executor slurm: what it requests, what it follows, and a job of submitit's local executor that is preempted."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.main import main
from experiment.run import slurm
from experiment.run.workers.slurm_share import Share

submitit = pytest.importorskip("submitit", reason="submitit is an extra: pip install 'experiment[slurm]'")

TIMES = ["seconds_compress", "seconds_retrain", "pareto"]

COMMANDS = {  # of Slurm; `queue` holds the answer to the next question
    "sbatch": 'cp "$1" script.sh\n[ -e refused ] && { cat refused >&2; exit 1; }\necho "Submitted batch job 77"',
    "srun": "exit 1",
    "squeue": "[ -e lost ] && { cat lost >&2; exit 1; }\n[ -e queue ] && cat queue && rm queue\nexit 0",
}

# A network whose job is preempted once in its second epoch.
OWN = """
import os
import signal
import time
from pathlib import Path

from torch import nn

from experiment.training import checkpoint

checkpoint.MAX_SHARE = -1.0  # checkpoints are written where a training ends or is told to, at no other time
calls = 0


class Preempted(nn.Sequential):
    def forward(self, x):
        global calls
        calls += self.training
        if calls > EPOCH and "SUBMITIT_FOLDER" in os.environ and Path("preempt").exists():
            Path("preempt").unlink()
            os.kill(os.getppid(), signal.SIGUSR2)
            time.sleep(60)
        return super().forward(x)


EPOCH = 30  # minibatches, at most


def make(input_shape, output_size):
    return Preempted(nn.Flatten(), nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, output_size))
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_plots")]


@pytest.fixture
def cluster(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands of Slurm, on the path and before all others."""
    (in_tmp / "bin").mkdir()
    for name, script in COMMANDS.items():
        (in_tmp / "bin" / name).write_text(f"#!/bin/bash\ncd {in_tmp}\n{script}\n")
        (in_tmp / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{in_tmp / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_LOOKS", 0.01)
    return in_tmp


def requested(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script.read_text(), re.MULTILINE))


def test_the_jobs_have_the_size_of_a_cell_and_the_options_of_the_file(
    cluster: Path, write: Any, small: dict[str, Any], capsys: Any
) -> None:
    small["slurm"] = {"partition": "gpu", "time": 60, "memory": 1.5, "options": {"qos": "high", "exclusive": True}}
    small["resources"] = {"cpus": 3}
    arguments = [str(write(small)), "--executor", "slurm", "--set", "slurm.account=vision", "--set", "seed=5"]
    assert main(arguments) == 1  # the queue is empty at once
    script = requested(cluster / "script.sh")
    own = {name: script[name] for name in ("partition", "account", "time", "mem", "cpus-per-task", "qos", "array")}
    assert own == {
        "partition": "gpu", "account": "vision", "time": "60", "mem": "1536M", "cpus-per-task": "3", "qos": "high",
        "array": "0-1%2",
    }  # fmt: skip
    assert {"exclusive", "requeue"} <= set(script)
    assert "gpus-per-node" not in script
    said = capsys.readouterr()
    assert "submitted job 77: 2 shares with 3 cores each, logs in data/results/small@" in said.err
    assert "jobs ended before their work was done" in said.out
    (job, *_) = cluster.glob("data/results/small@*/slurm/77_1_submitted.pkl")
    share = submitit.helpers.DelayedSubmission.load(job)
    assert share.args == (1,)
    assert share.function.number == 2
    given = ("--set=slurm.account=vision", "--set=seed=5", "--device=cpu")
    assert share.function.arguments == (arguments[0], *given)


def test_a_gpu_is_requested_where_there_is_none(cluster: Path, write: Any, small: dict[str, Any]) -> None:
    assert main([str(write(small)), "--executor", "slurm", "-q", "--device", "cuda", "-j", "1"]) == 1
    assert requested(cluster / "script.sh")["gpus-per-node"] == "1"
    assert "array" not in requested(cluster / "script.sh")


def test_the_same_command_follows_jobs_in_the_queue(
    cluster: Path, write: Any, small: dict[str, Any], capsys: Any
) -> None:
    arguments = [str(write(small)), "--executor", "slurm"]
    assert main(arguments) == 1
    (cluster / "script.sh").unlink()
    (cluster / "queue").write_text("PENDING (Resources)\nRUNNING (None)\n")
    assert main(arguments) == 1
    assert "small: following job 77, which an earlier call submitted" in capsys.readouterr().err
    assert not (cluster / "script.sh").exists()
    assert main(arguments) == 1  # its jobs have left the queue, and work is left
    assert (cluster / "script.sh").exists()


def test_a_refusal_says_what_sbatch_said(cluster: Path, write: Any, small: dict[str, Any], capsys: Any) -> None:
    (cluster / "refused").write_text("sbatch: error: invalid partition specified: nope")
    assert main([str(write(small)), "--executor", "slurm"]) == 2
    error = capsys.readouterr().err
    assert "no jobs were submitted (sbatch: error: invalid partition specified: nope). Use a machine" in error
    assert error.count("invalid partition") == 1


def test_nothing_is_submitted_if_every_job_would_fail(cluster: Path, write: Any, small: dict[str, Any]) -> None:
    small["training"]["optimizerKwargs"]["lr"] = -1.0
    assert main([str(write(small)), "--executor", "slurm"]) == 2
    assert not (cluster / "script.sh").exists()


def test_a_queue_that_does_not_answer_is_not_an_empty_one(cluster: Path) -> None:
    assert slurm._states("77") == []
    (cluster / "queue").write_text("PENDING (Resources)\nRUNNING (None)\n")
    assert slurm._states("77") == ["pending (resources)", "running"]
    (cluster / "lost").write_text("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert slurm._states("77") is None
    (cluster / "lost").write_text("slurm_load_jobs error: Invalid job id specified")
    assert slurm._states("77") == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-j", "4", "-i", "1"], "-i: not with --executor slurm, which numbers the shares itself"),
        (["--device", "cuda:1"], "--device cuda:1: Slurm assigns GPUs itself. Use --device cuda"),
        (["--set", "slurm.options={array: 0-3}"], "slurm.options.array: follows from -j, --device, `resources`, "),
        (["--device", "mps"], "--device mps: training and tests sum in float64"),
        (
            ["--set", "slurm.time=1"],
            "slurm.time: must be a whole number of minutes from 5 to 525,600 (a year), for example 120. Got 1.",
        ),
        (["--set", "slurm.time=02:00:00"], "(a year), for example 120. Got '02:00:00'."),
        (["--set", "slurm.time=99999999"], "(a year), for example 120. Got 99999999."),
        (["--set", "slurm.memory=32G"], "must be a number of GiB from 0.1 to 100,000, for example 32. Got '32G'."),
        (["--set", "slurm.memory=1e-6"], "must be a number of GiB from 0.1 to 100,000, for example 32. Got 1e-06."),
        (["--set", "slurm.partition=a b"], "slurm.partition: must not contain spaces or line breaks. Got 'a b'."),
        (["--set", 'slurm.account="a\\nb"'], "slurm.account: must not contain spaces or line breaks. Got 'a\\nb'."),
        (["--set", "slurm.partition=3"], '--set slurm.partition: must be text. Got 3. Write "3" in quotes for text.'),
        (["--set", 'slurm.options={qos: "a\\n"}'], "slurm.options.qos: must be one line of text, a number, true or"),
        (["--set", "slurm.options={--qos: high}"], "slurm.options.--qos: is not the name of an option"),
        (["--set", "slurm.options={exclude: [a, b]}"], "--set slurm.options.exclude: must be one line of text"),
    ],
)
def test_what_does_not_fit_is_refused(
    cluster: Path, write: Any, small: dict[str, Any], capsys: Any, arguments: list[str], error: str
) -> None:
    assert main([str(write(small)), "--executor", "slurm", *arguments]) == 2
    assert error in capsys.readouterr().err


def test_without_slurm_it_says_where_to_go(
    write: Any, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([str(write(small)), "--executor", "slurm"]) == 2
    assert (
        "--executor slurm: no sbatch, srun, squeue on the PATH. Run this on a machine from which"
        in capsys.readouterr().err
    )
    assert main([str(write(small)), "--executor", "slurm", "--plan"]) == 0, "a plan submits nothing"


@pytest.mark.usefixtures("in_tmp")
def test_a_job_ends_with_the_status_of_its_share() -> None:
    with pytest.raises(SystemExit) as status:
        Share(("nowhere.yaml",), 1)(0)
    assert status.value.code == 2


def test_a_preempted_job_continues_and_gives_the_results_of_this_machine(
    cluster: Path, write: Any, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster / "preempted.py").write_text(OWN)
    monkeypatch.syspath_prepend(cluster)
    small["network"]["name"] = "preempted:make"
    small["training"]["numEpochs"] = 4
    small["experiments"]["spacing"][0]["values"] = [0.5]
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_LOOKS", 1.0)
    path = str(write(small))
    jobs: list[Any] = []

    class Remembering(submitit.LocalExecutor):  # type: ignore[misc]
        def map_array(self, *how: Any) -> list[Any]:
            jobs.extend(super().map_array(*how))
            return jobs

    def executor(logs: Path, _: Any) -> Any:
        local = Remembering(logs.absolute())
        local.update_parameters(timeout_min=60, stderr_to_stdout=True)
        return local

    monkeypatch.setattr(slurm, "_executor", executor)
    monkeypatch.setattr(slurm, "_states", lambda _: ["RUNNING" for job in jobs if not job.done()])
    (cluster / "preempt").touch()
    assert main([path, "--executor", "slurm", "-v", "-j", "1", "--results", "jobs"]) == 0
    assert not (cluster / "preempt").exists()
    logs = "\n".join(log.read_text() for log in cluster.glob("jobs/small/slurm/*_log.out"))
    assert "Requeued job" in logs
    told = re.findall(r"^Reference net 0 epoch (\d)/4", logs, re.MULTILINE)
    assert sorted(told) == ["1", "2", "3", "4"], "an epoch was lost, or computed twice"
    assert json.loads((cluster / "jobs/small/slurm/array.json").read_text())["array"] == jobs[0].job_id
    (cluster / "data/trained_networks").rename(cluster / "aside")
    assert main([path, "-j", "1", "-q", "--results", "here"]) == 0
    there, here = (pd.read_csv(f"{name}/small/results.csv").drop(columns=TIMES) for name in ("jobs", "here"))
    assert set(here["status"]) == {"done"}
    pd.testing.assert_frame_equal(there, here, check_exact=True)
