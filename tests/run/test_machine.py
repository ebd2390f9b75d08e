"""Which device `auto` takes, what it computes in, and which GPU every worker process sees."""

import os
import signal
from multiprocessing import spawn
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.errors import ConfigError
from experiment.run import machine
from experiment.run.cell.context import Context
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.hardware import Resources
from experiment.run.grid.plan import Machine
from experiment.run.machine import DRIVERS, find_machine, gpu_possible, visible_gpus
from experiment.run.torchrun_launch import Launch
from experiment.run.workers.processes import Processes, no_main_module


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any driver, whose environment hides nothing."""
    monkeypatch.setattr(machine, "DRIVERS", ())
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    for name in machine.VISIBLE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two GPUs of NVIDIA's, Ampere."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    return monkeypatch


@pytest.mark.parametrize("driver", ["/dev/nvidiactl", "/dev/dxg", "/dev/kfd"])
def test_drivers_of_linux_wsl_and_rocm_are_found(
    driver: str, no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert driver in DRIVERS
    here = tmp_path / Path(driver).name
    monkeypatch.setattr(machine, "DRIVERS", (str(here),))
    assert not gpu_possible()
    here.touch()
    assert gpu_possible()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_possible()


def test_torch_decides_where_a_driver_is_installed(gpu: pytest.MonkeyPatch) -> None:
    assert find_machine("auto") == Machine("cuda", auto="bf16")
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert find_machine("auto") == Machine("cpu")


@pytest.mark.parametrize(("capability", "auto"), [((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")])
def test_auto_is_no_emulated_bfloat16(gpu: pytest.MonkeyPatch, capability: tuple[int, int], auto: str) -> None:
    """torch says that V100, T4 and older GPUs support bfloat16, unless it is asked without emulation."""
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    gpu.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert find_machine("cuda:1").auto == auto


def test_mps_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match="float64"):
        find_machine("mps")


def test_rocm_reads_its_own_variable_first(gpu: pytest.MonkeyPatch) -> None:
    gpu.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    gpu.setenv("HIP_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus(Machine("cuda")) == ("2", "5")


def tell_devices(connection: Connection, contexts: Any) -> None:
    """A worker that answers every message with its environment."""
    while True:
        connection.recv()
        connection.send({name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")})


@pytest.mark.usefixtures("quick_workers")
def test_a_replaced_worker_gets_the_gpu_of_the_one_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = dict(os.environ)
    directories = Directories(tmp_path, tmp_path, tmp_path)
    context = Context(Store(tmp_path), directories, Machine("cuda"), threads=3, resources=Resources(1, 1.0))
    with Processes([context], 3, tell_devices) as pool:
        assert seen(pool) == {0: "4", 1: "7", 2: "9"}
        killed = pool.workers[1]
        os.kill(killed.process.pid or 0, signal.SIGKILL)
        killed.process.join()
        work: Any = "more work"
        for _ in range(3):
            pool.start(work)  # the second finds its worker dead
        assert {m.slot: m.connection.recv()["CUDA_VISIBLE_DEVICES"] for m in pool.workers} == {0: "4", 1: "7", 2: "9"}
        assert killed not in pool.workers
    assert dict(os.environ) == before


def seen(pool: Processes) -> dict[int, str]:
    answers = {}
    for member in pool.workers:
        member.connection.send("what do you see?")
        told = member.connection.recv()
        assert told["OMP_NUM_THREADS"] == "3"
        answers[member.slot] = told["CUDA_VISIBLE_DEVICES"]
    return answers


@pytest.mark.parametrize(
    ("cores", "cells", "threads", "ranks", "readers"),
    [(1, 1, 1, 1, 0), (2, 1, 1, 1, 1), (2, 2, 1, 1, 0), (8, 2, 1, 1, 3), (8, 1, 4, 1, 4), (64, 1, 1, 1, 16),
     (8, 1, 1, 4, 1), (4, 8, 1, 1, 0)],
)  # fmt: skip
def test_readers_take_the_cores_that_cells_leave(
    monkeypatch: pytest.MonkeyPatch, cores: int, cells: int, threads: int, ranks: int, readers: int
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(machine, "find_launch", lambda: Launch(0, 0, ranks, ranks) if ranks > 1 else None)
    assert machine.reading_processes(cells, threads) == readers


@pytest.mark.parametrize(
    ("limits", "cores"),
    [({}, 8), ({"": "max 100000"}, 8), ({"a/b": "250000 100000"}, 2.5), ({"a/b": "unknown"}, 8),
     ({"a": "400000 100000", "a/b": "max 100000"}, 4), ({"a": "100000 100000", "a/b": "300000 100000"}, 1),
     ({"other": "100000 100000"}, 8)],
)  # fmt: skip
def test_limits_of_computing_time_are_cores(tmp_path: Path, limits: dict[str, str], cores: float) -> None:
    (tmp_path / "groups/a/b").mkdir(parents=True)
    (tmp_path / "groups/other").mkdir()
    for folder, limit in limits.items():
        (tmp_path / "groups" / folder / "cpu.max").write_text(f"{limit}\n")
    (tmp_path / "cgroup").write_text("1:cpu:/x\n0::/a/b\n")
    assert machine._time_share(8, tmp_path / "cgroup", tmp_path / "groups") == cores
    assert machine._time_share(8, tmp_path / "missing", tmp_path / "groups") == 8


@pytest.mark.parametrize(
    ("task", "share", "cores"), [("", 9.0, 8), ("3", 9.0, 3), ("64", 9.0, 8), ("x", 2.5, 2), ("0", 0.5, 1)]
)
def test_cores_of_a_job(monkeypatch: pytest.MonkeyPatch, task: str, share: float, cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_time_share", lambda cores: min(cores, share))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", task)
    assert machine.usable_cores() == cores


def test_workers_do_not_run_the_callers_script() -> None:
    """A script that calls the command without an `if __name__ == "__main__"` would run it again in each of them."""
    before = spawn.get_preparation_data("worker")
    with no_main_module():
        inside = spawn.get_preparation_data("worker")
    assert not {name for name in inside if name.startswith("init_main")}
    assert spawn.get_preparation_data("worker") == before
