"""Whole experiments on a GPU: shared by two workers, killed and continued, under torchrun, out of memory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {
    "network": {"name": "lenet5", "dataset": "Digits", "outputSize": 10},
    "training": {
        "batchSize": 64, "numEpochs": 2, "optimizer": "SGD", "optimizerKwargs": {"lr": 0.05, "momentum": 0.9},
        "transformsTrain": [{"type": "RandomCrop", "kwargs": {"size": 28, "padding": 2}}],
        "transformsFinal": [{"type": "ToTensor"}],
    },
    "retraining": {"numEpochs": 1},
    "experiments": {
        "methods": ["WT", "SVD"], "mode": "retrain", "numNets": 1, "spacing": [{"type": "manual", "values": [0.3]}],
    },
    "resources": {"cpus": 1, "gpus": 0.5},
}  # fmt: skip


def start(
    folder: Path, device: torch.device, *options: str, launcher: Sequence[str] = (), **changes: Any
) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL | changes))
    command = [sys.executable, "-m", *launcher, "experiment.main", "small.yaml", "--device", device.type, *options]
    paths = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def run(folder: Path, device: torch.device, *options: str, **more: Any) -> pd.DataFrame:
    process = start(folder, device, *options, **more)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return table(folder)


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "data/results/small/results.csv")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> pd.DataFrame:
    """The results of one worker."""
    return run(tmp_path_factory.mktemp("alone"), device, "-j", "1")


def assert_alike(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert set(found["status"]) == {"done"}
    assert list(found["parameters"]) == list(expected["parameters"])
    assert found["top1"].tolist() == pytest.approx(expected["top1"].tolist(), abs=0.02)


def test_two_workers_share_a_gpu(tmp_path: Path, device: torch.device, alone: pd.DataFrame) -> None:
    assert_alike(run(tmp_path, device, "-j", "2"), alone)


def test_killed_and_continued(tmp_path: Path, device: torch.device, alone: pd.DataFrame) -> None:
    process = start(tmp_path, device, "-j", "1")
    until = time.monotonic() + 120
    while not list(tmp_path.rglob("result.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert_alike(run(tmp_path, device, "-j", "1"), alone)


def test_one_process_under_torchrun(tmp_path: Path, device: torch.device, alone: pd.DataFrame) -> None:
    """Collectives go through nccl on a GPU, through gloo on a CPU."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
    assert_alike(run(tmp_path, device, launcher=launcher), alone)


HUNGRY = """
import torch
from torch import nn


class Hungry(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        if self.training and not x.is_cuda:
            raise torch.OutOfMemoryError("no room")
        if self.training:
            torch.empty(2**50, dtype=torch.uint8, device=x.device)
        return self.fc(x.flatten(1))


def make(input_shape, output_size):
    return Hungry()
"""


def test_what_does_not_fit_fails_with_its_reason(tmp_path: Path, device: torch.device) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    network = SMALL["network"] | {"name": "hungry:make"}
    output, _ = start(tmp_path, device, "-j", "1", network=network).communicate(timeout=300)
    assert "OutOfMemoryError" in output
